"""Complex parameters under optax.contrib.split_real_and_imaginary: specs of the model, and results."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_unf import Architecture, Inferred, InitialScalars, check_spec, infer_spec, init_weights, make_spec, unf
from optax_unf.spec.pairs import joined

pytestmark = pytest.mark.promotes("complex times real")

X = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
AXES = {"a": ("in", "hidden"), "b": {"kernel": ("hidden", "out"), "scale": ("out",)}}


def make_params(seed=1):
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    a, b = jax.lax.complex(draw(3, 4), draw(3, 4)), jax.lax.complex(draw(4, 2), draw(4, 2))
    return {"a": a, "b": {"kernel": b, "scale": draw(2)}}


def loss(params, x=X):
    y = jnp.tanh(x @ params["a"]) @ params["b"]["kernel"] * params["b"]["scale"]
    return jnp.mean(jnp.abs(y) ** 2)


def halves(tree):
    """The same parameters by hand: a dict of two real arrays for each complex one."""
    return jax.tree.map(lambda x: {"real": x.real, "imaginary": x.imag} if jnp.iscomplexobj(x) else x, tree)


def halved_axes():
    a, b = AXES["a"], AXES["b"]
    kernel = {"real": b["kernel"], "imaginary": b["kernel"]}
    return {"a": {"real": a, "imaginary": a}, "b": {"kernel": kernel, "scale": b["scale"]}}


def make_weights(coefficients="tied"):
    config = Architecture(coefficients=coefficients, hidden_channels=4, hidden_layers=1)
    return init_weights(
        config, make_spec(halved_axes(), halves(make_params())), jax.random.key(7), InitialScalars(beta=0.5)
    )


def step(tx):
    params, grads = make_params(), jax.tree.map(jnp.conj, jax.grad(loss)(make_params()))
    return tx.update(grads, tx.init(params), params)[0]


SPECS = {
    "names": lambda: AXES,
    "spec": lambda: make_spec(AXES, make_params()),
    "inferred before": lambda: infer_spec(loss, make_params(), X, io="permute"),
    "inferred": lambda: Inferred(loss, X),
    "names of halves": halved_axes,
    "spec of halves": lambda: make_spec(halved_axes(), halves(make_params())),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", SPECS)
def test_a_spec_of_the_model_serves_for_its_halves(kind):
    weights, params = make_weights("full"), make_params()
    updates = step(optax.contrib.split_real_and_imaginary(unf(weights, spec=SPECS[kind]())))
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)

    by_hand = unf(weights, spec=halved_axes())
    grads = halves(jax.tree.map(jnp.conj, jax.grad(loss)(params)))
    expected, _ = by_hand.update(grads, by_hand.init(halves(params)), halves(params))
    chex.assert_trees_all_close(halves(updates), expected, rtol=1e-5, atol=1e-6)


def test_the_update_commutes_with_the_group():
    spec, params = infer_spec(loss, make_params(), X, io="permute"), make_params()
    check_spec(loss, spec, params, X, key=jax.random.key(0))
    tx = optax.contrib.split_real_and_imaginary(unf(make_weights(), spec=spec))
    g = spec.random_permutation(jax.random.key(1))
    grads = make_params(2)

    def update(permute):
        return tx.update(permute(grads), tx.init(params), permute(params))[0]

    once, twice = spec.permute(g, update(lambda tree: tree)), update(lambda tree: spec.permute(g, tree))
    chex.assert_trees_all_close(once, twice, rtol=1e-5, atol=1e-6)


def test_without_a_spec_each_half_has_names_of_its_own():
    chex.assert_tree_all_finite(step(optax.contrib.split_real_and_imaginary(unf(make_weights(), spec=None))))


def test_a_bare_complex_array():
    params = make_params()["a"]
    tx = optax.contrib.split_real_and_imaginary(unf(make_weights(), spec=("in", "hidden")))
    updates, _ = jax.jit(tx.update)(params, tx.init(params), params)
    assert (updates.shape, updates.dtype) == (params.shape, params.dtype)


def test_parts_of_a_complex_model():
    mask = {"a": True, "b": {"kernel": False, "scale": True}}
    for spec in (AXES, infer_spec(loss, make_params(), X, io="permute")):
        tx = optax.contrib.split_real_and_imaginary(optax.masked(unf(make_weights(), spec=spec), mask))
        updates = step(tx)
        chex.assert_trees_all_equal(updates["b"]["kernel"], jnp.conj(jax.grad(loss)(make_params())["b"]["kernel"]))
        assert not np.array_equal(updates["a"], jnp.conj(jax.grad(loss)(make_params())["a"]))


def test_wrong_names_of_a_complex_model_get_the_error_of_the_model():
    tx = optax.contrib.split_real_and_imaginary(unf(make_weights(), spec=AXES | {"a": ("in",)}))
    with pytest.raises(ValueError, match=r"leaf 'a' must have one entry per axis: the leaf has shape \(3, 4\)"):
        step(tx)


def test_a_model_that_calls_its_own_leaves_so_is_left_alone():
    params = {"real": jnp.ones(3), "imaginary": jnp.ones(3)}
    assert joined(params) is params


@pytest.mark.parametrize("what", ["init", "update"])
def test_complex_leaves_without_the_wrapper_get_an_error_that_names_it(what):
    tx, params = unf(make_weights(), spec=AXES), make_params()
    real = jax.tree.map(jnp.real, params)
    with pytest.raises(TypeError, match=r"'a' is complex64. Wrap .*optax.contrib.split_real_and_imaginary"):
        tx.init(params) if what == "init" else tx.update(params, tx.init(real), real)


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_precision_is_that_of_the_model(dtype):
    with jax.enable_x64(dtype == "complex128"):
        params = jax.tree.map(lambda x: x.astype(dtype) if jnp.iscomplexobj(x) else x, make_params())
        tx = optax.contrib.split_real_and_imaginary(unf(make_weights(), spec=Inferred(loss, X)))
        updates = jax.eval_shape(lambda: tx.update(params, tx.init(params), params)[0])
        assert updates["a"].dtype == dtype
