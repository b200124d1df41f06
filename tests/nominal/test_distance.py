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
    return scale * jnp.mean((jnp.tanh(params["w"]) @ params["v"] + params["b"][None] - TARGET) ** 2)


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


@pytest.mark.promotes("optax's counts of steps are whole numbers")
@pytest.mark.parametrize("schedule", [0.5, optax.cosine_decay_schedule(1.0, 100)])
def test_prodigy_is_the_distance_of_adams_direction(schedule):
    reference = optax.contrib.prodigy(schedule, eps=1e-30)
    ours = optax.chain(scale_by_distance(optax.scale_by_adam(eps=1e-30), factor=schedule), optax.scale(-1.0))
    (expected, expected_state), _ = train(reference, parameters(), 60)
    (found, state), _ = train(ours, parameters(), 60)
    np.testing.assert_allclose(state[0].distance, expected_state.estim_lr, rtol=1e-2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-2), found, expected)


@pytest.mark.promotes("optax's counts of steps are whole numbers")
def test_the_distance_of_a_convex_problem_is_found():
    # Of sum |x - target|, the l1 estimate never exceeds the distance in the largest entry, and comes near it.
    target = jnp.array([0.7, -0.7, 0.7])
    optimizer = optax.chain(scale_by_distance(optax.scale_by_adam()), optax.scale(-1.0))
    (_, state), _ = train(optimizer, jnp.zeros(3), 300, lambda x: jnp.sum(jnp.abs(x - target)))
    assert 0.07 < state[0].distance <= 0.7 + 1e-5


@pytest.fixture(scope="module")
def whole():
    """A run of the whole optimizer, with a traced factor and traced scales of loss and parameters."""

    def run(factor, loss_scale, size, dtype=jnp.float32):
        params = jax.tree.map(lambda x: (size * x).astype(dtype), parameters())
        optimizer = orthogonal_prodigy(100, factor=factor)
        return train(optimizer, params, 100, lambda p: loss(jax.tree.map(lambda x: x / size, p), loss_scale))

    return jax.jit(run, static_argnames="dtype")


@pytest.mark.parametrize(("loss_scale", "size"), [(2.0**-14, 1.0), (2.0**14, 1.0), (1.0, 8.0), (1.0, 1 / 8)])
def test_scales_of_the_loss_and_of_parameters_do_not_matter(whole, loss_scale, size):
    (expected, state), losses = whole(1.0, 1.0, 1.0)
    (found, found_state), found_losses = whole(1.0, loss_scale, size)
    np.testing.assert_allclose(found_losses, loss_scale * losses, rtol=1e-3)
    np.testing.assert_allclose(found_state[0].inner.distance, state[0].inner.distance, rtol=1e-3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, size * b, rtol=1e-3, atol=1e-3 * size), found, expected)


@pytest.mark.promotes("parameters of one dtype, a loss of another")
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_it_trains_with_nothing_tuned(whole, dtype):
    (found, state), losses = whole(1.0, 1.0, 1.0, dtype)
    assert losses[-1] < 0.3 * losses[0]
    assert state[0].inner.distance > 0.02
    assert state[0].inner.distance.dtype == jnp.float32
    assert all(x.dtype == dtype for x in jax.tree.leaves(found))


def test_factors_may_be_traced(whole):
    factors = jnp.array([0.5, 2.0])
    found = jax.vmap(lambda f: whole(f, 1.0, 1.0)[1][10])(factors)
    np.testing.assert_allclose(found, [whole(f, 1.0, 1.0)[1][10] for f in factors], rtol=0.01)


@pytest.mark.parametrize("target", [0.01, 1.0, 30.0])
def test_zeros_find_a_solution_of_any_size(target):
    # Of parameters that are zero no size can be told: the distance has to find it.
    (found, _), _ = train(orthogonal_prodigy(300), jnp.zeros((3, 2)), 300, lambda w: jnp.mean((w - target) ** 2))
    np.testing.assert_allclose(found, target, rtol=0.2)


def test_past_the_end_parameters_stay():
    optimizer = orthogonal_prodigy(20)
    (_, state), _ = train(optimizer, parameters(), 20)
    updates, _ = jax.jit(lambda p: optimizer.update(jax.grad(loss)(p), state, p))(parameters())
    assert not any(np.any(x) for x in jax.tree.leaves(updates))


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
    with pytest.raises(ValueError, match="must be positive"):
        orthogonal_prodigy(0)
