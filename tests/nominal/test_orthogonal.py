"""Orthogonalized momentum."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_unf
from optax_unf import Concat, make_spec, scale_by_orthogonal
from optax_unf.nominal import orthogonal_prodigy, polar_factor
from optax_unf.spec.restrict import restrict

SHAPES = {"qkv": (6, 24), "out": (8, 6), "up": (3, 6, 7), "gain": (6,)}
NAMES = {
    "qkv": ("model", Concat(("head", "qk"), ("head", "qk"), ("head", "v"))),
    "out": (("head", "v"), "model"),
    "up": ("expert", "model", "hidden"),
    "gain": ("model",),
}
SIZES = {"head": 2, "qk": 4}


def tree(seed, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(seed), len(SHAPES))
    return {name: jax.random.normal(k, shape, dtype) for k, (name, shape) in zip(keys, SHAPES.items(), strict=True)}


def spec():
    return make_spec(NAMES, tree(0), sizes=SIZES)


def step(optimizer, grads, params=None):
    return jax.jit(lambda g: optimizer.update(g, optimizer.init(g), params)[0])(grads)


@pytest.mark.parametrize("shape", [(5, 5), (4, 30), (30, 4), (2, 3, 8, 9)])
def test_singular_values_of_the_polar_factor_are_near_one(shape):
    x = jax.random.normal(jax.random.key(0), shape)
    u, values, v = np.linalg.svd(np.asarray(x, np.float64), full_matrices=False)
    assert (values / np.linalg.norm(values, axis=-1, keepdims=True)).min() > 3e-3
    found = np.asarray(polar_factor(x), np.float64)
    # In the basis of the singular vectors it is diagonal: only the singular values have changed.
    inner = u.mT @ found @ v.mT
    diagonal = np.diagonal(inner, axis1=-2, axis2=-1)
    assert diagonal.min() > 0.65
    assert diagonal.max() < 1.25
    np.testing.assert_allclose(inner - diagonal[..., None] * np.eye(inner.shape[-1]), 0, atol=2e-3)


def test_the_iteration_on_gram_matrices_is_that_of_optax():
    module = pytest.importorskip("optax.contrib._muon")
    x = jax.random.normal(jax.random.key(0), (6, 40))
    expected = module.orthogonalize_via_newton_schulz(x, jnp.array([3.4445, -4.7750, 2.0315]))
    np.testing.assert_allclose(polar_factor(x), expected, atol=1e-4)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30])
def test_polar_factors_have_no_scale(scale):
    x = jax.random.normal(jax.random.key(0), (4, 6))
    np.testing.assert_allclose(polar_factor(scale * x), polar_factor(x) * float(scale > 0), atol=1e-4)


@pytest.mark.parametrize("heads", [False, True])
def test_parts_and_heads_are_those_of_a_loop(heads):
    grads = jax.tree.map(np.asarray, tree(1))
    found = step(scale_by_orthogonal(spec(), graft=False, heads=heads), grads)
    factor = jax.jit(polar_factor)

    def rule(x):
        return 0.2 * max(x.shape) ** 0.5 * np.asarray(factor(x))

    qkv = []
    for part in np.split(grads["qkv"], 3, axis=1):
        qkv += [rule(head) for head in np.split(part, 2, axis=1)] if heads else [rule(part)]
    np.testing.assert_allclose(found["qkv"], np.concatenate(qkv, axis=1), atol=1e-5)
    rows = np.split(grads["out"], 2) if heads else [grads["out"]]
    np.testing.assert_allclose(found["out"], np.concatenate([rule(x) for x in rows]), atol=1e-5)
    np.testing.assert_allclose(found["up"], np.stack([rule(x) for x in grads["up"]]), atol=1e-5)
    np.testing.assert_allclose(found["gain"], np.sign(grads["gain"]), atol=1e-5)


@pytest.mark.promotes("optax's counts of steps are whole numbers")
def test_grafted_matrices_have_the_size_of_adams_step():
    optimizer, adam = scale_by_orthogonal(), optax.scale_by_adam(0.95, 0.95, eps=0.0)
    grads = [{"w": tree(seed)["out"]} for seed in range(4)]
    state, expected_state = optimizer.init(grads[0]), adam.init(grads[0])
    update, update_adam = jax.jit(optimizer.update), jax.jit(adam.update)
    for g in grads:
        found, state = update(g, state)
        expected, expected_state = update_adam(g, expected_state)
        np.testing.assert_allclose(jnp.linalg.norm(found["w"]), jnp.linalg.norm(expected["w"]), rtol=1e-4)


@pytest.mark.parametrize("graft", [False, True])
def test_steps_commute_with_permutations(graft):
    space, optimizer = spec(), scale_by_orthogonal(spec(), graft=graft)
    update = jax.jit(lambda g: optimizer.update(g, optimizer.init(g))[0])
    for seed in range(3):
        g = space.random_permutation(jax.random.key(seed))
        found = update(space.permute(g, tree(1)))
        expected = space.permute(g, update(tree(1)))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found, expected)


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_steps_have_no_scale(scale):
    scaled = jax.tree.map(lambda x: scale * x, tree(1))
    found, expected = step(scale_by_orthogonal(), scaled), step(scale_by_orthogonal(), tree(1))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found, expected)


OPTIMIZERS = {
    "plain": lambda: optax_unf.orthogonal(0.01, weight_decay=0.1),
    "spec": lambda: optax_unf.orthogonal(0.01, spec(), graft=False),
    "callable": lambda: optax_unf.orthogonal(0.01, lambda params: restrict(spec(), params)),
    "prodigy": lambda: orthogonal_prodigy(100, spec=spec()),
    "soap": lambda: optax.chain(optax_unf.scale_by_soap(spec()), optax.scale(-0.01)),
}
optimizers = pytest.mark.parametrize("optimizer", [make() for make in OPTIMIZERS.values()], ids=list(OPTIMIZERS))


@pytest.mark.slow
@optimizers
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_types_are_stable_and_nothing_recompiles(optimizer, dtype):
    params = tree(0, dtype)
    state = optimizer.init(params)
    update = jax.jit(lambda g, s, p: optimizer.update(g, s, p, unknown=1))
    for seed in range(3):
        updates, new = update(tree(seed, dtype), state, params)
        assert all(x.dtype == dtype for x in jax.tree.leaves(updates))
        assert jax.tree.map(jax.typeof, new) == jax.tree.map(jax.typeof, state)
        state = new
    assert update._cache_size() == 1
    assert jax.tree.map(jnp.shape, jax.eval_shape(optimizer.init, params)) == jax.tree.map(jnp.shape, state)


@optimizers
def test_state_can_be_mapped(optimizer):
    state = optax.tree.map_params(optimizer, lambda x: x + 1, optimizer.init(tree(0)))
    assert jax.tree.structure(state) == jax.tree.structure(optimizer.init(tree(0)))


@optimizers
def test_masked_and_partitioned_trees(optimizer):
    params, mask = tree(0), {"qkv": True, "out": False, "up": True, "gain": False}
    masked = optax.masked(optimizer, mask)
    updates, _ = jax.jit(lambda g: masked.update(g, masked.init(params), params))(tree(1))
    np.testing.assert_array_equal(updates["out"], tree(1)["out"])
    assert np.any(updates["qkv"] != tree(1)["qkv"])


@pytest.mark.slow
@pytest.mark.promotes("optax's counts of steps are whole numbers")
@optimizers
def test_multi_steps(optimizer):
    many = optax.MultiSteps(optimizer, every_k_schedule=4)
    params, state = tree(0), many.init(tree(0))
    update = jax.jit(many.update)
    for k in range(4):
        updates, state = update(tree(k), state, params)
        assert any(bool(jnp.any(x)) for x in jax.tree.leaves(updates)) == (k == 3)


def test_a_bare_array_and_tuples():
    x = jax.random.normal(jax.random.key(0), (3, 4))
    assert step(scale_by_orthogonal(), x).shape == (3, 4)
    assert step(scale_by_orthogonal(), (x, x[0]))[1].shape == (4,)


def test_errors_are_clear():
    with pytest.raises(TypeError, match="floating-point"):
        scale_by_orthogonal().init({"n": jnp.zeros((3, 3), int)})
    with pytest.raises(ValueError, match="spec"):
        scale_by_orthogonal(spec()).init({"other": jnp.zeros((3, 3))})
