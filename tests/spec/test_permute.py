"""The action of the permutation group: by hand, and against numpy on random weight spaces."""

import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optax_unf import PermutationSpec, make_spec


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


@pytest.mark.usefixtures("unchecked")
def test_swapped_arguments_are_told():
    params = {"w": jnp.zeros((3, 2))}
    spec = make_spec({"w": ("a", "b")}, params)
    permutation = spec.random_permutation(jax.random.key(0))
    for tree in (params, [params["w"]], params["w"]):
        with pytest.raises(TypeError, match=r"other way round.*Write spec\.permute\(permutation, tree\)"):
            spec.permute(tree, permutation)


def test_permute_by_hand():
    params = {"w": jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), "b": jnp.array([7.0, 8.0, 9.0])}
    spec = make_spec({"w": ("out", "in"), "b": ("out",)}, params)
    out = spec.permute({"out": jnp.array([2, 0, 1]), "in": jnp.array([1, 0])}, params)
    expected = {"w": jnp.array([[6.0, 5.0], [2.0, 1.0], [4.0, 3.0]]), "b": jnp.array([9.0, 7.0, 8.0])}
    chex.assert_trees_all_equal(out, expected)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("wrong", [[0, 1, 1], [1, 2, 3], [-1, 0, 1], [0.0, 1.0, 2.0]])
def test_what_is_no_permutation_is_refused(wrong):
    params = {"w": zeros(3, 2)}
    spec = make_spec({"w": ("out", "in")}, params)
    permutation = {"out": np.array(wrong), "in": np.array([1, 0])}
    with pytest.raises(ValueError, match="'out' must hold each of 0 to 2 once"):
        spec.permute(permutation, params)
    with pytest.raises(ValueError, match="'out' must hold each of 0 to 2 once"):
        spec.invert(permutation)


def test_equal_names_in_a_leaf_permute_together():
    x = jnp.arange(9.0).reshape(3, 3)
    p = np.array([1, 2, 0])
    out = make_spec(("n", "n"), x).permute({"n": jnp.asarray(p)}, x)
    chex.assert_trees_all_equal(out, x[p][:, p])


def test_permuting_hidden_neurons_keeps_the_function():
    rng = np.random.default_rng(0)
    params = [(rng.normal(size=(4, 6)), rng.normal(size=6)), (rng.normal(size=(6, 2)), rng.normal(size=2))]
    spec = make_spec([(("x", "h"), ("h",)), (("h", "y"), ("y",))], params)
    g = spec.random_permutation(jax.random.key(1)) | {"x": jnp.arange(4), "y": jnp.arange(2)}

    def predict(params, x):
        (w1, b1), (w2, b2) = params
        return jnp.tanh(x @ w1 + b1) @ w2 + b2

    x = rng.normal(size=(5, 4))
    permuted = spec.permute(g, params)
    assert not np.allclose(permuted[0][0], params[0][0])
    chex.assert_trees_all_close(predict(permuted, x), predict(params, x), atol=1e-5)


def test_features_keep_their_channels():
    spec = make_spec({"w": ("out", "in")}, {"w": zeros(3, 2)})
    features = {"w": jnp.arange(24.0).reshape(3, 2, 4)}
    out = spec.permute({"out": jnp.array([1, 2, 0]), "in": jnp.array([1, 0])}, features)
    chex.assert_trees_all_equal(out, {"w": features["w"][jnp.array([1, 2, 0])][:, ::-1]})


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.int32, jnp.bool_])
def test_permute_keeps_the_dtype(dtype):
    x = jnp.arange(4).astype(dtype)
    spec = make_spec(("n",), x)
    out = spec.permute({"n": jnp.array([3, 2, 1, 0])}, x)
    assert out.dtype == dtype
    chex.assert_trees_all_equal(out, x[::-1])


def test_random_permutations_are_permutations_and_depend_on_the_key_alone():
    spec = make_spec({"a": ("x", "y"), "b": (0, "y")}, {"a": zeros(1, 50), "b": zeros(20, 50)})
    g = spec.random_permutation(jax.random.key(0))
    assert list(g) == ["x", "y", 0]
    for name, size in spec.sizes.items():
        np.testing.assert_array_equal(np.sort(g[name]), np.arange(size))
    chex.assert_trees_all_equal(g, jax.jit(spec.random_permutation)(jax.random.key(0)))
    other = spec.random_permutation(jax.random.key(1))
    assert not np.array_equal(g["y"], other["y"])


def names() -> st.SearchStrategy[Any]:
    return st.sampled_from(["a", "b", 0, 1, None])


@st.composite
def spaces(draw) -> tuple[Any, dict[str, np.ndarray]]:
    """A tree of names with products, and parameters that fit."""
    sizes = {name: draw(st.integers(0, 4)) for name in ("a", "b", 0, 1)}
    tree, params = {}, {}
    for i in range(draw(st.integers(0, 4))):
        # At most one fixed factor a product; its size is 2.
        product = st.lists(names(), min_size=1, max_size=3).map(tuple).filter(lambda axis: axis.count(None) <= 1)
        axes = tuple(draw(st.lists(st.one_of(names(), product), max_size=3)))
        groups = [axis if isinstance(axis, tuple) else (axis,) for axis in axes]
        shape = tuple(math.prod(sizes.get(name, 2) for name in group) for group in groups)
        tree[f"leaf{i}"], params[f"leaf{i}"] = axes, np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
    return (tree, sizes), params


def make(space: Any) -> tuple[PermutationSpec, dict[str, np.ndarray]]:
    (tree, sizes), params = space
    # A product of size 0 does not say how large its factors are: all sizes are given.
    used = {n for axes in tree.values() for axis in axes for n in (axis if isinstance(axis, tuple) else (axis,))}
    return make_spec(tree, params, sizes={n: size for n, size in sizes.items() if n in used}), params


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(spaces(), st.integers(0, 2**31))
def test_permute_agrees_with_numpy_and_the_inverse_undoes_it(space, seed):
    spec, params = make(space)
    g = spec.random_permutation(jax.random.key(seed))
    permuted = spec.permute(g, params)
    for leaf in spec.leaves:
        x = params[leaf.path].reshape(leaf.factored_shape)
        for axis, (name, _) in enumerate(leaf.factors):
            if name is not None:
                x = np.take(x, np.asarray(g[name]), axis)
        np.testing.assert_array_equal(permuted[leaf.path], x.reshape(leaf.shape))
    chex.assert_trees_all_equal(spec.permute(spec.invert(g), permuted), params)
    chex.assert_trees_all_equal(spec.permute(g, spec.permute(spec.invert(g), params)), params)
    chex.assert_trees_all_equal(spec.invert(spec.invert(g)), g)


@settings(max_examples=20, deadline=None)
@given(spaces())
def test_specs_are_hashable_printable_and_equal_whatever_the_order(space):
    spec, params = make(space)
    (tree, sizes), _ = space
    turned = ({path: tree[path] for path in reversed(tree)}, sizes), {path: params[path] for path in reversed(params)}
    again, _ = make(turned)
    assert again == spec
    assert hash(again) == hash(spec)
    for leaf in spec.leaves:
        assert f"{leaf.path}  {leaf.shape}" in str(spec)
    chex.assert_trees_all_equal(spec.unflatten(spec.flatten(params), params), params)
