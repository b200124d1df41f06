"""The state: dtypes, traces, donation, as a carry, as a tree."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from learned import SPEC, close, descend, each_head, make, make_params, make_weights, two_heads, weights_of

from optax_unf import unf

DTYPES = ["float16", "bfloat16", "float32", "float64"]


@pytest.mark.slow
@each_head
@pytest.mark.parametrize("accumulator_dtype", [None, "bfloat16", "float32"])
@pytest.mark.parametrize("dtype", [*DTYPES, "mixed"])
def test_types_are_stable(head, dtype, accumulator_dtype):
    with jax.enable_x64(dtype == "float64"):
        kinds = DTYPES[:3] if dtype == "mixed" else [dtype] * 3
        params = {k: x.astype(d) for (k, x), d in zip(make_params().items(), kinds, strict=True)}
        tx = unf(weights_of(head), spec=SPEC, accumulator_dtype=accumulator_dtype)
        state = jax.eval_shape(tx.init, params)
        updates, after = jax.eval_shape(tx.update, params, state, params)
        for old, new in zip(jax.tree.leaves((params, state)), jax.tree.leaves((updates, after)), strict=True):
            assert (old.shape, old.dtype) == (new.shape, new.dtype)
            assert not new.weak_type
        wide = accumulator_dtype or {"float64": "float64"}.get(dtype, "float32")
        assert {str(m.dtype) for m in jax.tree.leaves(after[0].mu)} == {wide}


@two_heads
def test_narrow_parameters_get_the_rounded_update(head):
    # Values that bfloat16 and float16 hold exactly, so that the features are the same.
    def exact(seed, dtype):
        return jax.tree.map(lambda x: jnp.round(4 * x).astype(dtype) / 4, make_params(seed))

    tx = make(head)
    update = jax.jit(lambda g, p: tx.update(g, tx.init(p), p)[0])
    wide = update(exact(1, jnp.float32), exact(0, jnp.float32))
    for dtype in (jnp.bfloat16, jnp.float16):
        narrow = update(exact(1, dtype), exact(0, dtype))
        chex.assert_trees_all_close(
            jax.tree.map(jnp.float32, narrow), wide, rtol=3 * float(jnp.finfo(dtype).eps), atol=1e-6
        )
        mixed = update(exact(1, dtype), exact(0, jnp.float32))
        chex.assert_trees_all_close(mixed, wide, rtol=1e-6, atol=1e-6)


@pytest.mark.promotes("updates of two precisions are compared")
@two_heads
def test_float64_updates_are_more_precise(head):
    with jax.enable_x64(True):
        tx = make(head)
        update = jax.jit(lambda g, p: tx.update(g, tx.init(p), p)[0])
        double = update(*(jax.tree.map(jnp.float64, make_params(n)) for n in (1, 0)))
        single = update(make_params(1), make_params())
        assert all(x.dtype == jnp.float64 for x in jax.tree.leaves(double))
        chex.assert_trees_all_close(jax.tree.map(jnp.float32, double), single, rtol=1e-4, atol=1e-5)
        assert any((a != b).any() for a, b in zip(jax.tree.leaves(double), jax.tree.leaves(single), strict=True))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("size", [1e-4, 1.0, 1e3])
def test_narrow_accumulators_keep_the_scale_by_entry(dtype, size):
    """Of a constant gradient, the nominal term goes to 1, as in Adam."""
    weights = make_weights("none", preconditioner="rms")
    tx = unf(weights, spec=SPEC, accumulator_dtype=dtype, factor=1 / weights.alpha)
    params, state = make_params(), tx.init(make_params())
    assert {x.dtype for x in jax.tree.leaves(state[0].nu)} == {jnp.dtype("float32")}
    grads = jax.tree.map(lambda x: jnp.full_like(x, size), params)

    def step(state, _):
        updates, state = tx.update(grads, state, params)
        return state, updates["b"][0]

    _, updates = jax.jit(lambda state: jax.lax.scan(step, state, None, length=2000))(state)
    np.testing.assert_allclose(updates[-1], -1.0, rtol=0.02)


def test_accumulator_dtype_rounds_the_momenta():
    plain, narrow = make("deepsets"), make("deepsets", accumulator_dtype=jnp.bfloat16)
    (a, wide), (b, rounded) = descend(plain, steps=1), descend(narrow, steps=1)
    chex.assert_trees_all_equal(jax.tree.map(jnp.bfloat16, wide[0].mu), rounded[0].mu)
    close(a, b, 0.01)


@pytest.mark.parametrize("dtype", ["int32", "complex64", bool])
def test_accumulator_dtype_must_be_real(dtype):
    with pytest.raises(TypeError, match="accumulator_dtype must be real floating-point"):
        make("none", accumulator_dtype=dtype)


@each_head
def test_one_trace_and_donation(head):
    tx, params = make(head), make_params()
    traces = []

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, grads):
        traces.append(1)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for n in range(3):
        old, (params, state) = (params, state), step(params, state, make_params(n))
        assert all(x.is_deleted() for x in jax.tree.leaves(old))
    assert len(traces) == 1
    assert step._cache_size() == 1


@two_heads
def test_the_state_is_a_carry(head):
    tx, grads = make(head), jax.tree.map(lambda *x: jnp.stack(x), *(make_params(n) for n in (1, 2, 3)))

    def body(carry, grads):
        params, state = carry
        updates, state = jax.lax.cond(True, tx.update, lambda g, s, p: (g, s), grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, state), _ = jax.jit(lambda c: jax.lax.scan(body, c, grads))((make_params(), tx.init(make_params())))
    expected, expected_state = descend(tx)
    close((params, state), (expected, expected_state))


@two_heads
def test_tree_utilities(head):
    tx, params = make(head), make_params()
    _, state = descend(tx, steps=2)
    assert optax.tree.get(state, "count") == 2
    doubled = optax.tree.map_params(tx, lambda m: 2 * m, state)
    assert doubled[0].count == 2
    chex.assert_trees_all_equal(doubled[0].mu, jax.tree.map(lambda m: 2 * m, state[0].mu))
    reset = optax.tree.set(state, count=jnp.zeros([], jnp.int32))
    assert reset[0].count == 0
    shards = optax.tree.map_params(tx, lambda _, path: path, state, {k: k for k in params})
    assert shards[0].mu[-1] == {k: k for k in params}


@two_heads
def test_abstract_parameters(head):
    tx = make(head)
    abstract = jax.eval_shape(make_params)
    types = jax.tree.map(lambda x: (x.shape, x.dtype), jax.eval_shape(tx.init, abstract))
    assert types == jax.tree.map(lambda x: (x.shape, x.dtype), tx.init(make_params()))
    assert types == jax.tree.map(lambda x: (x.shape, x.dtype), tx.init(abstract))
