"""Adam in the eigenbases of gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optax_unf import Concat, make_spec, scale_by_orthogonal, scale_by_soap

SHAPES = {"w": (5, 7), "qkv": (7, 9), "gain": (7,)}
NAMES = {"w": ("in", "out"), "qkv": ("out", Concat("query", "key")), "gain": ("out",)}
SIZES = {"query": 4, "key": 5}


def tree(seed, shapes=SHAPES):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def spec():
    return make_spec(NAMES, tree(0), sizes=SIZES)


def last_step(optimizer, grads, params=None):
    update, state = jax.jit(optimizer.update), optimizer.init(grads[0])
    for g in grads:
        step, state = update(g, state, params)
    return step, state


def with_eps(squares, eps):
    return np.sqrt(squares) + eps * np.sqrt(squares.mean())


def of_one_matrix(grads, every, momentum=0.9, b2=0.95, eps=1e-3):
    """The last step, written anew in float64."""
    rows, columns = grads[0].shape
    left_moments, right_moments = np.zeros((rows, rows)), np.zeros((columns, columns))
    mu, nu, turned = (np.zeros((rows, columns)) for _ in range(3))
    for t, g in enumerate((np.asarray(g, np.float64) for g in grads), 1):
        mu, nu = momentum * mu + (1 - momentum) * g, b2 * nu + (1 - b2) * g**2
        left_moments = b2 * left_moments + (1 - b2) * g @ g.T
        right_moments = b2 * right_moments + (1 - b2) * g.T @ g
        if t <= every:
            left, right = (np.linalg.eigh(x)[1][:, ::-1] for x in (left_moments, right_moments))
        elif t % every == 0:
            left, right = np.linalg.qr(left_moments @ left)[0], np.linalg.qr(right_moments @ right)[0]
        turned = b2 * turned + (1 - b2) * (left.T @ g @ right) ** 2
        ahead = momentum * mu + (1 - momentum) * g
        step = left @ (left.T @ ahead @ right / with_eps(turned / (1 - b2**t), eps)) @ right.T
        adam = mu / (1 - momentum**t) / with_eps(nu / (1 - b2**t), eps)
        step *= np.linalg.norm(adam) / np.linalg.norm(step)
    return step


@pytest.mark.parametrize("steps", [1, 4, 5, 17])
def test_steps_are_those_of_a_loop_in_float64(steps):
    grads = [tree(seed, {"w": (5, 5)}) for seed in range(steps)]
    found, _ = last_step(scale_by_soap(every=4), grads)
    expected = of_one_matrix([g["w"] for g in grads], every=4)
    np.testing.assert_allclose(found["w"], expected, atol=2e-3 * np.abs(expected).max())


def test_parts_are_matrices_of_their_own():
    # With as many gradients as the longer side has entries over the shorter, no direction is unseen.
    grads = [tree(seed) for seed in range(6)]
    found, _ = last_step(scale_by_soap(spec(), every=4), grads)
    for part in (slice(0, 4), slice(4, 9)):
        expected = of_one_matrix([g["qkv"][:, part] for g in grads], every=4)
        np.testing.assert_allclose(found["qkv"][:, part], expected, atol=5e-3 * np.abs(expected).max())


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31))
def test_steps_commute_with_permutations(seed):
    space = spec()
    grads, g = [tree(seed + k) for k in range(14)], space.random_permutation(jax.random.key(seed))
    permuted, _ = last_step(scale_by_soap(space), [space.permute(g, x) for x in grads])
    expected = space.permute(g, last_step(scale_by_soap(space), grads)[0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), permuted, expected)


def test_directions_commute_with_rotations():
    left, right = (np.linalg.qr(np.random.default_rng(k).normal(size=(6, 6)))[0] for k in (1, 2))
    grads = [tree(seed, {"w": (6, 6)})["w"] for seed in range(14)]
    found, _ = last_step(scale_by_soap(), [{"w": (left @ g @ right).astype(np.float32)} for g in grads])
    plain, _ = last_step(scale_by_soap(), [{"w": g} for g in grads])
    found, expected = np.asarray(found["w"]), left @ np.asarray(plain["w"]) @ right
    np.testing.assert_allclose(found / np.linalg.norm(found), expected / np.linalg.norm(expected), atol=2e-3)


def test_the_first_step_is_the_polar_factor():
    # There the gradient is diagonal in its bases, and every direction has a size of its own.
    g = tree(0, {"w": (4, 6)})
    u, _, v = np.linalg.svd(g["w"].astype(np.float64), full_matrices=False)
    found = np.asarray(last_step(scale_by_soap(), [g])[0]["w"])
    np.testing.assert_allclose(found / np.linalg.norm(found), u @ v / 2, atol=2e-3)


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_steps_have_no_scale(scale):
    grads = [tree(seed) for seed in range(12)]
    scaled, _ = last_step(scale_by_soap(), [jax.tree.map(lambda x: np.float32(scale) * x, g) for g in grads])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), scaled, last_step(scale_by_soap(), grads)[0])


@pytest.mark.promotes("optax's counts of steps are whole numbers")
def test_steps_have_the_size_of_adams():
    grads = [tree(seed) for seed in range(13)]
    found, _ = last_step(scale_by_soap(), grads)
    expected, _ = last_step(optax.scale_by_adam(0.9, 0.95, eps=0.0), grads)
    for name in found:
        np.testing.assert_allclose(jnp.linalg.norm(found[name]), jnp.linalg.norm(expected[name]), rtol=1e-2)
    np.testing.assert_allclose(found["gain"], expected["gain"], rtol=1e-2)


def test_matrices_with_a_long_side_are_orthogonalized():
    grads = [tree(seed) for seed in range(3)]
    expected, _ = last_step(scale_by_orthogonal(momentum=0.9, eps=1e-3), grads)
    found, state = last_step(scale_by_soap(largest=6), grads)
    assert not state.bases
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    found, state = last_step(scale_by_soap(largest=7), grads)
    assert list(state.bases) == ["w:0"]
    np.testing.assert_array_equal(found["qkv"], expected["qkv"])
    assert np.abs(found["w"] - expected["w"]).max() > 0.1


def test_eigenbases_follow_gradients_that_change():
    # The one direction that the gradients have is the first of the basis, also after it has turned.
    rng = np.random.default_rng(0)
    optimizer = scale_by_soap(b2=0.5, every=2)
    update, state = jax.jit(optimizer.update), optimizer.init({"w": jnp.zeros((4, 4))})
    for _ in range(2):
        direction = np.linalg.qr(rng.normal(size=(4, 4)))[0][:, 0]
        for _ in range(30):
            g = np.outer(direction, rng.normal(size=4)) + 1e-3 * rng.normal(size=(4, 4))
            _, state = update({"w": jnp.asarray(g, jnp.float32)}, state)
        assert abs(np.asarray(state.bases["w:0"].left)[0, :, 0] @ direction) > 0.999


def test_derivatives_with_respect_to_the_momentum_are_finite():
    grads = jax.tree.map(lambda *x: jnp.stack(x), *(tree(seed) for seed in range(12)))
    grads["dead"] = jnp.zeros((12, 3, 4))

    def objective(momentum):
        optimizer = scale_by_soap(momentum=momentum)

        def step(state, g):
            updates, state = optimizer.update(g, state)
            return state, sum(jnp.sum(x**2) for x in jax.tree.leaves(updates))

        return jnp.sum(jax.lax.scan(step, optimizer.init(jax.tree.map(lambda x: x[0], grads)), grads)[1])

    slope = jax.jit(jax.grad(objective))(0.9)
    assert np.isfinite(slope)
    assert slope != 0


def test_runs_can_be_mapped():
    optimizer = scale_by_soap()
    both = jax.tree.map(lambda *x: jnp.stack(x), tree(1), tree(2))
    found = jax.vmap(lambda g: optimizer.update(g, optimizer.init(g))[0])(both)
    for k in range(2):
        expected, _ = last_step(optimizer, [tree(k + 1)])
        jax.tree.map(lambda a, b, k=k: np.testing.assert_allclose(a[k], b, atol=2e-3), found, expected)


def test_a_part_without_parameters():
    masked = optax.masked(scale_by_soap(), {"w": False})
    grads = {"w": jnp.ones((2, 2))}
    updates, _ = jax.jit(masked.update)(grads, masked.init(grads))
    np.testing.assert_array_equal(updates["w"], grads["w"])
