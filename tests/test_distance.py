"""The step size that is found while training."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_unf
from optax_unf.nominal import dual_norm, orthogonal_prodigy, scale_by_distance

TARGET = jax.random.normal(jax.random.key(1), (6, 4))


def loss(params, scale=1.0):
    return scale * jnp.mean((jnp.tanh(params["w"]) @ params["v"] + params["b"] - TARGET) ** 2)


def parameters():
    keys = jax.random.split(jax.random.key(0))
    return {"w": jax.random.normal(keys[0], (6, 5)), "v": jax.random.normal(keys[1], (5, 4)), "b": jnp.zeros(4)}


def train(optimizer, params, steps, function=loss):
    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(function)(params)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), value

    return jax.jit(lambda p: jax.lax.scan(step, (p, optimizer.init(p)), length=steps))(params)


@pytest.mark.parametrize("schedule", [1.0, 0.5, optax.cosine_decay_schedule(1.0, 100)])
def test_prodigy_is_the_distance_of_adams_direction(schedule):
    reference = optax.contrib.prodigy(schedule, eps=1e-30)
    ours = optax.chain(scale_by_distance(optax.scale_by_adam(eps=1e-30), factor=schedule), optax.scale(-1.0))
    (expected, expected_state), _ = train(reference, parameters(), 60)
    (found, state), _ = train(ours, parameters(), 60)
    np.testing.assert_allclose(state[0].distance, expected_state.estim_lr, rtol=1e-2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-2), found, expected)


def test_the_distance_of_a_convex_problem_is_found():
    # Of sum |x - target|, the l1 estimate never exceeds the distance in the largest entry, and comes near it.
    target = jnp.array([0.7, -0.7, 0.7])
    optimizer = optax.chain(scale_by_distance(optax.scale_by_adam()), optax.scale(-1.0))
    (_, state), _ = train(optimizer, jnp.zeros(3), 300, lambda x: jnp.sum(jnp.abs(x - target)))
    assert 0.07 < state[0].distance <= 0.7 + 1e-5


@pytest.mark.parametrize("scale", [2.0**-14, 2.0**14])
def test_the_scale_of_the_loss_does_not_matter(scale):
    expected, _ = train(orthogonal_prodigy(100), parameters(), 100)
    found, _ = train(orthogonal_prodigy(100), parameters(), 100, lambda p: loss(p, scale))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found[0], expected[0])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_it_trains_with_nothing_tuned(dtype):
    params = jax.tree.map(lambda x: x.astype(dtype), parameters())
    (found, state), losses = train(orthogonal_prodigy(300), params, 300)
    assert losses[-1] < 0.3 * losses[0]
    assert state[0].distance > 1e-3
    assert state[0].distance.dtype == jnp.float32
    assert all(x.dtype == dtype for x in jax.tree.leaves(found))


def test_parameters_of_ten_times_the_size_train_as_well():
    params = jax.tree.map(lambda x: 10 * x, parameters())
    _, losses = train(orthogonal_prodigy(300), params, 300, lambda p: loss(jax.tree.map(lambda x: x / 10, p)))
    assert losses[-1] < 0.3 * losses[0]


def test_past_the_end_parameters_stay():
    optimizer = orthogonal_prodigy(20)
    (_, state), _ = train(optimizer, parameters(), 20)
    updates, _ = jax.jit(optimizer.update)(jax.grad(loss)(parameters()), state, parameters())
    assert all(not jnp.any(x) for x in jax.tree.leaves(updates))


def test_factors_may_be_traced():
    def final(factor):
        return train(orthogonal_prodigy(50, factor=factor), parameters(), 50)[1][-1]

    factors = jnp.array([0.5, 2.0])
    np.testing.assert_allclose(jax.vmap(final)(factors), [final(f) for f in factors], rtol=1e-2)


def test_the_dual_norm_is_the_nuclear_norm_for_matrices():
    matrix = np.asarray(jax.random.normal(jax.random.key(0), (6, 40)), np.float64)
    expected = 0.2 * 40**0.5 * np.linalg.svd(matrix, compute_uv=False).sum()
    found = dual_norm()({"w": jnp.asarray(matrix, jnp.float32)})
    assert 0.7 * expected < found < 1.25 * expected
    direction = optax_unf.scale_by_orthogonal(graft=False)
    optimizer = optax.chain(scale_by_distance(direction, norm=dual_norm(), factor=0.5), optax.scale(-1.0))
    assert train(optimizer, parameters(), 100)[1][-1] < loss(parameters())


def test_errors_are_clear():
    optimizer = scale_by_distance(optax.scale_by_adam())
    state = optimizer.init(parameters())
    with pytest.raises(ValueError, match="without them"):
        optimizer.update(parameters(), state)
    with pytest.raises(TypeError, match="floating-point"):
        optimizer.init({"n": jnp.zeros(3, int)})
    with pytest.raises(ValueError, match="positive integer"):
        orthogonal_prodigy(0)
