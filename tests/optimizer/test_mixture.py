"""A mixture of directions for each leaf."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from learned import close
from two_layers import SHAPES, SPEC, numbers

from optax_unf import (
    Architecture,
    InitialScalars,
    MetaWeights,
    init_weights,
    load_weights,
    save_weights,
    scale_by_orthogonal,
    scale_by_unf,
    unf,
)
from optax_unf.meta import FullES, MetaTrainConfig, Stage, meta_train
from optax_unf.optimizer.mixture import FACTS, OUTPUTS, scale_by_mixture

MIXTURE = Architecture("mixture", hidden_channels=8, hidden_layers=1, nominal="orthogonalized", step="distance")


def make_weights(beta=1.0):
    weights = init_weights(MIXTURE, SPEC, jax.random.key(3), InitialScalars(beta=beta))
    theta = jax.tree.map(lambda x: x + 0.3 if x.ndim else x, weights.theta)  # biases, too
    return MetaWeights(theta, weights.architecture, weights.spec)


def descend(tx, steps, params=None, shift=0.0):
    """Directions, on a parabola with noise."""
    params, state, seen = numbers(0) if params is None else params, None, []
    state = tx.init(params)
    for step in range(steps):
        grads = jax.tree.map(lambda x, noise: x + 0.5 * noise - shift, params, numbers(10 + step))
        direction, state = tx.update(grads, state, params)
        seen.append((params, grads, direction))
        params = jax.tree.map(lambda x, d: x - 0.05 * d, params, direction)
    return seen


def by_hand(layers, seen, total_steps):
    """The directions in float64, from the definition; the nominal steps are given."""
    nominal = scale_by_orthogonal(momentum=0.9)
    state = nominal.init(seen[0][0])
    names = list(seen[0][0])
    mu, nu, slow = ({name: np.zeros(SHAPES[name]) for name in names} for _ in range(3))
    (k0, b0), (k1, b1) = ([np.asarray(layer[n], np.float64) for n in ("kernel", "bias")] for layer in layers)

    def rms(x):
        return np.sqrt(np.mean(x**2))

    def unit(x):
        return np.clip(x / rms(x), -10, 10)

    history, results = [], []
    for t, (params, grads, _) in enumerate(seen):
        steps, state = nominal.update(grads, state, params)
        w, g, o = ({name: np.asarray(tree[name], np.float64) for name in names} for tree in (params, grads, steps))
        before = {name: (mu[name], slow[name]) for name in names}
        mu = {name: 0.9 * mu[name] + 0.1 * g[name] for name in names}
        nu = {name: 0.95 * nu[name] + 0.05 * g[name] ** 2 for name in names}
        slow = {name: 0.99 * slow[name] + 0.01 * g[name] for name in names}
        root = {name: np.sqrt(nu[name] / (1 - 0.95 ** (t + 1))) for name in names}
        adam = {name: mu[name] / (1 - 0.9 ** (t + 1)) / root[name] for name in names}

        def cosine(x, y):
            return np.mean(x * y) / (rms(x) * rms(y)) if y.any() else 0.0

        history.append([[*(cosine(g[n], m) for m in before[n]), rms(adam[n])] for n in names])
        ages = 0.9 ** np.arange(t, -1, -1)
        noisy = np.tensordot(ages / ages.sum(), np.array(history), 1) * [3, 3, 2] - [0, 0, 1]
        share = np.array([np.prod(SHAPES[name]) for name in names])
        tau = t / total_steps
        result = {}
        for k, name in enumerate(names):
            facts = np.array(
                [
                    0.5 if len(SHAPES[name]) == 2 else -0.5,
                    *noisy[k],
                    *(share @ noisy / share.sum()),
                    2 * tau - 1,
                    np.tanh(10 * (tau - 0.1)),
                    np.tanh(10 * (tau - 0.9)),
                    np.clip(np.log(rms(w[name])), -2, 2),
                    np.log(total_steps) - 6,
                    np.exp(-(t + 1) / 20),
                ]
            )
            y = np.array([1.0, 0.5, 0.5, 0.5]) * np.tanh(np.tanh(facts @ k0 + b0) @ k1 + b1)
            d = o[name] / rms(o[name]) + y[1] * unit(w[name]) + y[2] * unit(adam[name])
            d = d + y[3] * unit(slow[name] / root[name])
            result[name] = np.float32(np.exp(y[0]) * rms(o[name]) * d / rms(d))
        results.append(result)
    return results


def test_directions_are_those_of_the_definition():
    layers = make_weights().theta.network
    seen = descend(scale_by_mixture(layers, 40), 12)
    for (_, _, found), expected in zip(seen, by_hand(layers, seen, 40), strict=True):
        chex.assert_trees_all_close(found, expected, rtol=2e-4, atol=2e-5)


def test_without_f_it_is_the_nominal_term():
    found = descend(scale_by_unf(make_weights(beta=0.0), total_steps=40), 5)
    expected = descend(scale_by_orthogonal(momentum=0.9), 5)
    close([d for _, _, d in found], [d for _, _, d in expected])


def test_whatever_the_numbers_a_step_is_bounded():
    nominal = scale_by_orthogonal(momentum=0.9)
    for seed in range(3):
        shapes = ((FACTS, 8), (8, OUTPUTS))
        keys = jax.random.split(jax.random.key(seed), 2)
        layers = [
            {"kernel": 1e3 * jax.random.normal(k, s), "bias": jnp.ones(s[1])} for k, s in zip(keys, shapes, strict=True)
        ]
        seen = descend(scale_by_mixture(layers, 40), 4)
        state = nominal.init(seen[0][0])
        for params, grads, direction in seen:
            steps, state = nominal.update(grads, state, params)
            for name in SHAPES:
                ratio = jnp.sqrt(jnp.mean(direction[name] ** 2) / jnp.mean(steps[name] ** 2))
                assert np.exp(-1) * 0.999 < ratio < np.exp(1) * 1.001


def test_the_scale_of_the_gradients_does_not_matter():
    tx = scale_by_unf(make_weights(), total_steps=40)
    params, state, other = numbers(0), None, None
    state = other = tx.init(params)
    for step in range(3):
        grads = numbers(20 + step)
        direction, state = tx.update(grads, state, params)
        scaled, other = tx.update(jax.tree.map(lambda g: 1e4 * g, grads), other, params)
        chex.assert_trees_all_close(direction, scaled, rtol=1e-4, atol=1e-5)


def test_it_commutes_with_permutations_of_neurons():
    permutation = SPEC.random_permutation(jax.random.key(5))
    tx = scale_by_unf(make_weights(), total_steps=40, spec=SPEC)

    def train(permute):
        params = permute(numbers(0))
        state = tx.init(params)
        for step in range(3):
            direction, state = tx.update(permute(numbers(20 + step)), state, params)
            params = optax.apply_updates(params, jax.tree.map(lambda d: -0.1 * d, direction))
        return params

    once = SPEC.permute(permutation, train(lambda tree: tree))
    chex.assert_trees_all_close(once, train(lambda tree: SPEC.permute(permutation, tree)), rtol=1e-4, atol=1e-5)


def test_files_hold_it_and_it_trains_any_model(tmp_path):
    save_weights(tmp_path / "weights.safetensors", make_weights(0.1))
    weights = load_weights(tmp_path / "weights.safetensors")
    chex.assert_trees_all_equal(weights.theta, make_weights(0.1).theta)

    def loss(params):
        return jnp.sum((params["deep"]["w"] - 1) ** 2) + (params["x"] + 2) ** 2

    params = {"deep": {"w": jnp.zeros((3, 2))}, "x": jnp.zeros(()), "empty": jnp.zeros((0, 3))}
    tx = unf(weights, total_steps=200)
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(200):
        params, state = step(params, state)
    assert loss(params) < 0.05


@pytest.mark.parametrize("total_steps", [None, 10])
def test_one_program_or_many(total_steps):
    tx = unf(make_weights(), total_steps=total_steps)
    params, grads = numbers(0), numbers(1)
    state = tx.init(params)
    plain, plain_state = tx.update(grads, state, params)
    compiled, compiled_state = jax.jit(tx.update)(grads, state, params)
    close(plain, compiled)
    close(plain_state, compiled_state)


def test_narrow_parameters_and_masks():
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), numbers(0))
    tx = optax.masked(unf(make_weights(), total_steps=10), {"w": True, "b": False, "v": True})
    updates, state = tx.update(params, tx.init(params), params)
    assert updates["w"].dtype == jnp.bfloat16
    chex.assert_trees_all_equal(updates["b"], params["b"])
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(state))


@pytest.mark.promotes  # optax's Adam takes powers of counts
def test_it_can_be_meta_trained():
    class Parabola:
        def init(self, key):
            return {"w": jax.random.normal(key, (3, 2))}

        def sample(self, key):
            return jax.random.normal(key, (3, 2))

        def loss(self, params, batch):
            return jnp.mean((params["w"] - 0.1 * batch) ** 2)

    config = MetaTrainConfig(
        (Stage(FullES(pairs=2, sigma=0.1), steps=2, learning_rate=0.05),), horizon=20, evaluate_every=1
    )
    begun = make_weights(0.5)
    result = meta_train(MIXTURE, Parabola(), config, jax.random.key(0), weights=begun, progress=False)
    assert np.isfinite(result.curve[-1]["final_loss"])
    kernels = [weights.theta.network[0]["kernel"] for weights in (begun, result.last)]
    assert jnp.abs(kernels[0] - kernels[1]).max() > 1e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nominal": "momentum"}, "nominal must be 'orthogonalized', but is 'momentum'"),
        ({"step": "alpha"}, "step must be 'distance'"),
        ({"hidden_layers": 3}, "hidden_layers must be 1, but is 3"),
        ({"preconditioner": "rms"}, "preconditioner must be None"),
    ],
)
def test_what_a_mixture_has_not_is_refused(change, message):
    options = {"hidden_channels": 8, "hidden_layers": 1, "nominal": "orthogonalized", "step": "distance"}
    with pytest.raises(ValueError, match=message):
        Architecture("mixture", **(options | change))


def test_parameters_are_needed():
    tx = scale_by_unf(make_weights(), total_steps=10)
    params = numbers(0)
    with pytest.raises(ValueError, match=r"update\(gradients, state, params\)"):
        tx.update(params, tx.init(params))
