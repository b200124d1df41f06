"""Parameters of narrow types, and jax's strict promotion: updates are those of float32, rounded."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from learned import AXES, make_params, make_weights

from optax_unf import make_spec, scale_by_unf, unf

SPEC = make_spec(AXES, make_params())
FLOAT8 = ["float8_e4m3fn", "float8_e5m2", "float8_e4m3", "float8_e3m4"]
HEADS = [
    ("none", {"preconditioner": None, "step_warmup": True}),
    ("deepsets", {"preconditioner": "rms"}),
    ("deepsets", {"pool": True}),
    ("tied", {"preconditioner": "rms", "step_warmup": True}),
    ("full", {}),
    ("none", {"nominal": "orthogonalized", "step": "distance"}),
]


def typed(dtype, seed=0):
    """Numbers that every type holds, so that the features are the same."""
    exact = jax.tree.map(lambda x: jnp.sign(x) * jnp.clip(jnp.round(2 * jnp.abs(x)) / 2, 0.5, 2), make_params(seed))
    dtypes = dict(zip(exact, ("bfloat16", "float32", "float8_e4m3fn"), strict=True)) if dtype == "mixed" else {}
    return {path: x.astype(dtypes.get(path, dtype)) for path, x in exact.items()}


def two_steps(tx, dtype):
    params, state = typed(dtype), tx.init(typed(dtype))
    for seed in (1, 2):
        updates, state = tx.update(typed(dtype, seed), state, params)
    return updates, state


@pytest.mark.slow
@pytest.mark.parametrize(("head", "config"), HEADS)
def test_narrow_types_give_the_rounded_update(head, config):
    tx = optax.chain(scale_by_unf(make_weights(head, **config), spec=SPEC), optax.scale(-1.0))
    wide, _ = two_steps(tx, "float32")
    with jax.numpy_dtype_promotion("strict"):
        for dtype in ("bfloat16", "float16", "float8_e4m3fn", "float8_e5m2", "mixed"):
            updates, state = two_steps(tx, dtype)
            chex.assert_trees_all_equal_dtypes(updates, typed(dtype))
            moments = [x for x in jax.tree.leaves(state) if x.ndim]
            assert {x.dtype for x in moments} == {jnp.dtype("float32")}
            for path, x in updates.items():
                eps = float(jnp.finfo(x.dtype).eps)
                np.testing.assert_allclose(np.float32(x), wide[path], rtol=eps + 1e-4, atol=eps / 8 + 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("head", "config"), HEADS)
@pytest.mark.parametrize(("accumulator_dtype", "tile_entries"), [(None, 0), ("bfloat16", 3), ("float8_e5m2", 0)])
def test_types_are_stable_under_strict_promotion(head, config, accumulator_dtype, tile_entries):
    with jax.numpy_dtype_promotion("strict"):
        weights = make_weights(head, **config)
        for dtype in ("float64", "float32", "bfloat16", "float8_e5m2", "mixed"):
            with jax.enable_x64(dtype == "float64"):
                tx = unf(weights, spec=SPEC, accumulator_dtype=accumulator_dtype, tile_entries=tile_entries)
                params = jax.eval_shape(lambda dtype=dtype: typed(dtype))
                state = jax.eval_shape(tx.init, params)
                updates, after = jax.eval_shape(tx.update, params, state, params)
                chex.assert_trees_all_equal_shapes_and_dtypes((updates, after), (params, state))


@pytest.mark.usefixtures("unchecked")  # jaxtyping does not know all types of 8 bits
@pytest.mark.parametrize("dtype", FLOAT8)
def test_parameters_of_8_bits_learn(dtype):
    """A loss falls as far as the type resolves."""
    target = {path: x.astype(dtype) for path, x in typed("float32", seed=3).items()}

    def loss(params):
        return sum(jnp.sum((params[path] - target[path].astype(jnp.float32)) ** 2) for path in params)

    tx = optax.chain(scale_by_unf("mlp-fashion-mnist-deepsets"), optax.scale(-0.3))
    params = typed(dtype)
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        grads = jax.grad(loss)(jax.tree.map(lambda x: x.astype(jnp.float32), params))
        updates, state = tx.update(jax.tree.map(lambda g, p: g.astype(p.dtype), grads, params), state, params)
        return optax.apply_updates(params, updates), state

    before = loss(jax.tree.map(jnp.float32, params))
    for _ in range(40):
        params, state = step(params, state)
    assert loss(jax.tree.map(jnp.float32, params)) < 0.1 * before


def test_a_type_without_a_sign_is_refused():
    scales = {"w": jnp.ones((3, 2), "float8_e8m0fnu")}
    tx = unf("mlp-fashion-mnist-deepsets")
    with pytest.raises(TypeError, match="that have either sign, but the parameter 'w' is float8_e8m0fnu"):
        tx.init(scales)
    with pytest.raises(TypeError, match=r"accumulator_dtype must be .* of either sign, .* 'float8_e8m0fnu'"):
        unf("mlp-fashion-mnist-deepsets", accumulator_dtype="float8_e8m0fnu")
