"""The default optimizer, and learned optimizers with its nominal term and step."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from learned import SPEC, close, descend, make_params, make_weights

from optax_unf import (
    MetaWeights,
    list_pretrained,
    load_weights,
    scale_by_found_step,
    scale_by_orthogonal,
    scale_by_soap,
    scale_by_unf,
    unf,
)

TARGET = make_params(9)


def loss(params, scale=1.0):
    return scale * sum(jnp.sum((params[path] - TARGET[path]) ** 2) for path in params)


def train(tx, steps, function=loss, state=None, params=None):
    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(function)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    params = make_params() if params is None else params
    state = tx.init(params) if state is None else state
    return jax.jit(lambda *carry: jax.lax.scan(step, carry, length=steps)[0])(params, state)


@pytest.mark.slow
def test_the_default_is_the_nominal_term_alone():
    nominal = optax.chain(scale_by_found_step(scale_by_soap(), 60), optax.scale(-1.0))
    close(train(unf(total_steps=60), 60)[0], train(nominal, 60)[0], 1e-4)


def test_it_trains_with_nothing_but_the_number_of_steps():
    assert loss(train(unf(total_steps=300), 300)[0]) < 1e-3 * loss(make_params())


@pytest.mark.slow
@pytest.mark.parametrize("head", ["none", "deepsets", "tied", "full"])
def test_f_is_added_to_the_nominal_term_and_does_not_depend_on_it(head):
    params, grads = make_params(), make_params(1)

    def direction(beta, **config):
        weights = make_weights(head, **config)
        theta = weights.theta.with_scalars(**({"beta": jnp.float32(beta)} if head != "none" else {}))
        tx = scale_by_unf(MetaWeights(theta, weights.architecture, weights.spec), spec=SPEC)
        return tx.update(grads, tx.init(params), params)[0]

    terms = {
        "momentum": optax.ema(0.9, debias=False),
        "orthogonalized": scale_by_orthogonal(SPEC, momentum=0.9),
        "soap": scale_by_soap(SPEC),
    }
    learned = []
    for nominal, tx in terms.items():
        close(direction(0.0, nominal=nominal), tx.update(grads, tx.init(params), params)[0])
        learned.append(jax.tree.map(jnp.subtract, direction(0.5, nominal=nominal), direction(0.0, nominal=nominal)))
    close(learned[0], learned[1])
    close(learned[0], learned[2])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("head", "preconditioner", "scale"),
    [
        ("none", None, 2.0**-14),
        ("none", None, 2.0**14),
        ("deepsets", "rms", 2.0**-14),
        ("deepsets", None, 2.0**14),  # features below 1e-8 fade: not for tiny gradients
    ],
)
def test_the_scale_of_the_loss_does_not_matter(head, preconditioner, scale):
    weights = make_weights(head, nominal="orthogonalized", step="distance", preconditioner=preconditioner)
    expected = train(unf(weights, total_steps=30), 10)[0]
    close(train(unf(weights, total_steps=30), 10, lambda p: loss(p, scale))[0], expected, 1e-3)


def test_a_run_that_is_resumed_goes_on_and_ends_at_zero_steps():
    tx = unf(total_steps=20)
    params, state = train(tx, 12)
    resumed, state = train(unf(total_steps=20), 8, state=jax.device_get(state), params=params)
    close(resumed, train(tx, 20)[0])
    close(train(tx, 3, state=state, params=resumed)[0], resumed, 0)


def test_without_a_number_of_steps_there_is_no_schedule():
    half = optax.constant_schedule(0.5)
    close(train(unf(factor=0.5), 30)[0], train(unf(factor=half), 30)[0])
    whole, scheduled = (
        tx.update(make_params(), tx.init(make_params()), make_params())[0] for tx in (unf(), unf(total_steps=1000))
    )
    close(whole, scheduled)


@pytest.mark.parametrize("name", ["universal", "mlp-fashion-mnist-sgdm"])
def test_weight_decay_is_decoupled(name):
    tx = unf(name, weight_decay=0.1, weight_decay_mask={"w": True, "b": False, "scale": False})
    params, grads = make_params(), make_params(1)
    decayed = tx.update(grads, tx.init(params), params)[0]
    plain = unf(name).update(grads, unf(name).init(params), params)[0]
    # The first estimate of the distance is 0.02.
    size = (0.02 * 6 / 1000**0.5) ** 0.5 if name == "universal" else load_weights(name).alpha
    expected = plain | {"w": plain["w"] - 0.1 * size * params["w"]}
    chex.assert_trees_all_close(decayed, expected, rtol=1e-4)


def test_numbers_can_be_injected():
    injected = optax.inject_hyperparams(unf)(total_steps=30, factor=0.5, weight_decay=0.01)
    params, state = descend(injected, steps=30)
    assert set(state.hyperparams) >= {"total_steps", "factor", "weight_decay"}
    close(params, descend(unf(total_steps=30, factor=0.5, weight_decay=0.01), steps=30)[0])


def test_a_part_of_the_parameters():
    mask = {"w": True, "b": False, "scale": False}
    params, _ = train(optax.masked(unf(total_steps=50), mask), 50)
    alone, _ = train(unf(total_steps=50), 50, params={"w": make_params()["w"]})
    close(params["w"], alone["w"])


@pytest.mark.parametrize(
    ("wanted", "got", "error", "match"),
    [
        ("momentum", "orthogonalized", ValueError, r"must hold \d trees of momenta"),
        ("orthogonalized", "momentum", ValueError, r"must hold \d trees of momenta"),
        ("soap", "momentum", ValueError, r"must hold \d trees of momenta"),
        ("soap", "orthogonalized", TypeError, "ScaleBySoapState"),
    ],
)
def test_the_state_of_another_nominal_term_is_refused(wanted, got, error, match):
    wanted, got = (scale_by_unf(make_weights("deepsets", nominal=kind), spec=SPEC) for kind in (wanted, got))
    params = make_params()
    with pytest.raises(error, match=match):
        wanted.update(params, got.init(params), params)


def test_it_commutes_with_permutations_of_neurons():
    order = np.array([2, 0, 1])
    moved = {**make_params(), "w": make_params()["w"][order]}
    goal = {**TARGET, "w": TARGET["w"][order]}
    weights = make_weights("tied", nominal="orthogonalized", step="distance")
    tx = unf(weights, spec=SPEC, total_steps=40)
    plain, _ = train(tx, 8)
    permuted, _ = train(tx, 8, lambda p: sum(jnp.sum((p[k] - goal[k]) ** 2) for k in p), params=moved)
    close(permuted, {**plain, "w": plain["w"][order]}, 1e-3)


def test_the_list_says_what_fits_any_model():
    listed = list_pretrained()
    assert listed[0].name == "universal"
    assert listed[0].step == "found"
    for record in listed:
        assert (record.fits == "any model") == (load_weights(record.name).spec is None)
    lines = str(listed).splitlines()
    assert len(lines) == 2 + len(listed)
    assert "alpha, 0.075" in next(line for line in lines if line.startswith("mlp-fashion-mnist-unf"))
