"""The UNF layer against Algorithm 1, against group averages, and under the group's action."""

import collections
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spaces import (
    assert_close,
    bell,
    both_orders,
    leaf_axes,
    make_space,
    random_features,
    random_spaces,
    randomize,
    rank,
    stacked_basis_maps,
    stacked_layer_maps,
)

from optax_unf import make_spec
from optax_unf.equivariant.basis import apply_term, basis
from optax_unf.equivariant.contract import contractions, expansions
from optax_unf.nn import UNF


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(random_spaces(), st.sampled_from(["full", "tied"]), st.integers(0, 2**31))
def test_commutes_with_the_group(axes, coefficients, seed):
    spec = make_space(axes)
    keys = jax.random.split(jax.random.key(seed), 3)
    layer = UNF(spec, 2, coefficients)
    x = random_features(spec, keys[0], 3)
    variables = randomize(jax.eval_shape(layer.init, keys[1], x), keys[1])
    g = spec.random_permutation(keys[2])
    assert_close(*both_orders(functools.partial(layer.apply, variables), spec)(g, x))


@settings(max_examples=60, deadline=None)
@given(leaf_axes(), leaf_axes())
def test_pairs_of_equal_signature_are_the_valid_partitions(target, source):
    numbers = {name: i for i, name in enumerate("abcd")}
    target, source = (tuple(numbers[n] for n in axes) for axes in (target, source))
    pairs = sum(len(expansions(target, signature)) for _, signature in contractions(source))
    expected = math.prod(bell(target.count(n) + source.count(n)) for n in numbers.values())
    assert pairs == expected


def test_terms_of_algorithm_1_are_the_matrices_of_their_partitions():
    spec = make_space([("b", "a", "b"), ("a", "d"), ("a",), ()])
    terms, x = basis(spec), random_features(spec, jax.random.key(0), 2)
    found = jax.jit(lambda x: [apply_term(term, spec, x[spec.paths[term.source]]) for term in terms])(x)
    flat = np.concatenate([x[path].reshape(-1, 2) for path in spec.paths])
    ends = np.cumsum([math.prod(leaf.shape) for leaf in spec.leaves])
    for term, y, row in zip(terms, found, stacked_basis_maps(spec), strict=True):
        expected = np.split(row.reshape(len(flat), -1) @ flat, ends[:-1])
        assert y.shape == (*spec.leaves[term.target].shape, 2)
        np.testing.assert_allclose(y.reshape(-1, 2), expected[term.target], rtol=1e-5, atol=1e-5)
        assert all((part == 0).all() for n, part in enumerate(expected) if n != term.target)


@settings(max_examples=10, deadline=None)
@given(random_spaces(names="abd", max_terms=200))
def test_spans_what_algorithm_1_spans(axes):
    spec = make_space(axes)
    with jax.enable_x64(True):
        mine, theirs = stacked_layer_maps(UNF(spec, 1, use_bias=False), spec), stacked_basis_maps(spec)
    assert rank(mine) == rank(theirs) == rank(np.concatenate([mine, theirs]))


@pytest.mark.slow
@pytest.mark.parametrize(
    "axes",
    [
        [("a", "a", "a")],
        [("b", "b"), ("b",)],
        [("a", "a", "b", "b")],
        [("a", "a", "a"), ("a",)],
        [("b", "a", "b"), ("a",), ()],
        [("a", "b", "c", "d"), ("c", "b")],
    ],
)
def test_spans_what_algorithm_1_spans_with_repeated_names(axes):
    spec = make_space(axes)
    with jax.enable_x64(True):
        mine, theirs = stacked_layer_maps(UNF(spec, 1, use_bias=False), spec), stacked_basis_maps(spec)
    assert rank(mine) == rank(theirs) == rank(np.concatenate([mine, theirs]))


def mlp_space(depth, width):
    tree = {f"layer_{i}": {"w": (i, i + 1), "b": (i + 1,)} for i in range(depth)}
    params = {name: {"w": np.zeros((width, width)), "b": np.zeros(width)} for name in tree}
    return make_spec(tree, params)


OTHER_SPACES = {
    "scalar": make_space([()]),
    "cube": make_space([("b", "b", "b"), ("b",), ()]),
    "rank 4": make_space([("a", "b", "c", "d"), ("c", "b"), ("a", "a")]),
    "many scalars": make_space([()] * 40),
}


@pytest.mark.slow
@pytest.mark.parametrize("coefficients", ["full", "tied"])
@pytest.mark.parametrize(
    "spec",
    [mlp_space(d, w) for d, w in ((1, 4), (4, 32), (16, 8))] + list(OTHER_SPACES.values()),
    ids=["mlp 1x4", "mlp 4x32", "mlp 16x8", *OTHER_SPACES],
)
def test_outputs_have_unit_scale_at_initialization(spec, coefficients):
    layer = UNF(spec, 64, coefficients)
    normal = random_features(spec, jax.random.key(0), 32)
    constant = {path: jnp.broadcast_to(x[(0,) * (x.ndim - 1)], x.shape) for path, x in normal.items()}
    apply = jax.jit(layer.apply)
    variables = layer.lazy_init(jax.random.key(1), jax.eval_shape(lambda: normal))
    for x in (normal, constant):
        for y in apply(variables, x).values():
            assert 0.3 < np.sqrt(np.mean(np.square(y))) < 3


def spec_tree(spec, leaves):
    """A nested dict with the paths of the spec."""
    tree = {}
    for path, leaf in zip(spec.paths, leaves, strict=True):
        *folders, last = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[last] = leaf
    return tree


@pytest.mark.parametrize("coefficients", ["full", "tied"])
def test_an_empty_leaf_changes_nothing_but_itself(coefficients):
    spec = make_space([("a", "e"), ("a", "b"), ("e",), ("e", "e")])
    x = random_features(spec, jax.random.key(0), 3)
    layer = UNF(spec, 2, coefficients)
    variables = randomize(jax.eval_shape(layer.init, jax.random.key(1), x), jax.random.key(2))
    y = jax.jit(layer.apply)(variables, x)
    assert y["leaf_0"].shape == (2, 0, 2)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(y))


def test_an_empty_fixed_axis():
    spec = make_spec({"x": (None, "a"), "y": ("a",)}, {"x": jnp.zeros((0, 2)), "y": jnp.zeros(2)})
    y, _ = UNF(spec, 3).init_with_output(jax.random.key(0), {"x": jnp.zeros((0, 2, 1)), "y": jnp.ones((2, 1))})
    assert y["x"].shape == (0, 2, 3)
    assert np.isfinite(y["y"]).all()


@pytest.mark.promotes("leaves have several dtypes")
@pytest.mark.parametrize("coefficients", ["full", "tied"])
def test_each_leaf_keeps_its_dtype(coefficients):
    spec = make_space([("a", "b"), ("b",), ()])
    x = random_features(spec, jax.random.key(0), 3)
    narrow = {path: leaf.astype(jnp.bfloat16) for path, leaf in x.items()}
    layer = UNF(spec, 2, coefficients)
    apply = jax.jit(layer.apply)
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    wide_y, narrow_y = apply(variables, x), apply(variables, narrow)
    assert {leaf.dtype for leaf in jax.tree.leaves(narrow_y)} == {jnp.dtype(jnp.bfloat16)}
    for path, leaf in wide_y.items():
        np.testing.assert_allclose(narrow_y[path].astype(jnp.float32), leaf, atol=0.1, rtol=0.1)
    mixed = apply(variables, narrow | {"leaf_1": x["leaf_1"]})
    assert [leaf.dtype for leaf in mixed.values()] == [jnp.bfloat16, jnp.float32, jnp.bfloat16]


def test_fixed_axes_span_all_maps_that_commute_with_the_rest():
    # Burnside: the dimension of the equivariant maps is the mean of the squared traces over the group.
    spec = make_spec({"x": (None, "b"), "y": ("b",)}, {"x": jnp.zeros((2, 3)), "y": jnp.zeros(3)})
    with jax.enable_x64(True):
        maps = stacked_layer_maps(UNF(spec, 1, use_bias=False), spec)
    fixed_points = {(0, 1, 2): 3, (1, 0, 2): 1, (2, 1, 0): 1, (0, 2, 1): 1, (1, 2, 0): 0, (2, 0, 1): 0}
    dimension = sum((3 * fixed) ** 2 for fixed in fixed_points.values()) // len(fixed_points)
    assert rank(maps) == dimension


def test_product_axes_are_two_axes():
    split = make_spec({"x": ("a", "b", "c")}, {"x": jnp.zeros((2, 3, 4))})
    fused = make_spec({"x": (("a", "b"), "c")}, {"x": jnp.zeros((6, 4))}, sizes={"a": 2})
    x = jax.random.normal(jax.random.key(0), (2, 3, 4, 5))
    y, variables = jax.jit(UNF(split, 2).init_with_output)(jax.random.key(1), {"x": x})
    z = jax.jit(UNF(fused, 2).apply)(variables, {"x": x.reshape(6, 4, 5)})
    np.testing.assert_allclose(y["x"].reshape(6, 4, 2), z["x"], rtol=1e-5, atol=1e-6)


def test_coefficients_belong_to_paths_and_not_to_positions():
    class Reordered(collections.OrderedDict):
        pass

    jax.tree_util.register_pytree_with_keys(
        Reordered,
        lambda d: ([(jax.tree_util.DictKey(k), v) for k, v in d.items()], tuple(d)),
        lambda keys, values: Reordered(zip(keys, values, strict=True)),
    )
    spec = make_space([("a", "b"), ("b",), ("a", "a")])
    x = random_features(spec, jax.random.key(0), 3)
    layer = UNF(spec, 2)
    variables = layer.init(jax.random.key(1), x)
    plain = layer.apply(variables, x)
    backwards = layer.apply(variables, Reordered(reversed(x.items())))
    assert list(backwards) == list(reversed(x))
    for path, leaf in plain.items():
        np.testing.assert_array_equal(leaf, backwards[path])


def test_tied_weights_run_on_another_space():
    small, large = mlp_space(2, 4), mlp_space(5, 8)
    ones = [spec_tree(s, [jnp.ones((*leaf.shape, 3)) for leaf in s.leaves]) for s in (small, large)]
    variables = jax.jit(UNF(large, 2, "tied").init)(jax.random.key(0), ones[1])
    y = jax.jit(UNF(small, 2, "tied").apply)(variables, ones[0])
    assert y["layer_0"]["w"].shape == (4, 4, 2)
    other = UNF(make_space([("a", "b", "c")]), 2, "tied")
    y = jax.jit(other.apply)(variables, {"leaf_0": jnp.ones((2, 3, 4, 3))})
    assert np.isfinite(y["leaf_0"]).all()


def test_vmap_over_weight_spaces():
    spec = make_space([("a", "b"), ("b",)])
    batch = [random_features(spec, jax.random.key(n), 3) for n in range(3)]
    layer = UNF(spec, 2)
    apply = jax.jit(layer.apply)
    variables = jax.jit(layer.init)(jax.random.key(1), batch[0])
    stacked = jax.tree.map(lambda *x: np.stack(x), *batch)
    together = jax.jit(jax.vmap(layer.apply, (None, 0)))(variables, stacked)
    for n, x in enumerate(batch):
        for path, y in apply(variables, x).items():
            np.testing.assert_allclose(together[path][n], y, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ({"leaf_0": jnp.ones((2, 3))}, r"'leaf_0' must have shape \(2, 3, 'channels'\)"),
        ({"leaf_0": jnp.ones((3, 2, 1))}, "make the spec from parameters of this shape"),
        ({"leaf_0": jnp.ones((5, 2, 3, 1))}, r"have \(5, 2, 3, 1\).*jax\.vmap\(layer\.apply, \(None, 0\)\)"),
        ({"leaf_1": jnp.ones((2, 3, 1))}, "lacks 'leaf_0'"),
    ],
)
def test_features_that_do_not_fit_are_refused(x, message):
    with pytest.raises(ValueError, match=message):
        UNF(make_space([("a", "b")]), 1).init(jax.random.key(0), x)


def test_many_parameters_from_fixed_axes_are_warned_of():
    params = {"w1": jnp.zeros((64, 4)), "b1": jnp.zeros(4), "w2": jnp.zeros((4, 10)), "b2": jnp.zeros(10)}
    x = jax.tree.map(lambda leaf: jnp.ones((*leaf.shape, 16)), params)
    fixed = make_spec({"w1": (None, "h"), "b1": ("h",), "w2": ("h", None), "b2": (None,)}, params)
    named = make_spec({"w1": ("in", "h"), "b1": ("h",), "w2": ("h", "out"), "b2": ("out",)}, params)

    def number(layer):
        return sum(x.size for x in jax.tree.leaves(jax.eval_shape(layer.init, jax.random.key(0), x)))

    with pytest.warns(
        UserWarning, match=r"parameters, most of them because .* 64 positions of leaf 'w1'.*io='perm"
    ) as w:
        found = number(UNF(fixed, 16))
    assert f"has {found:,} parameters" in str(w[0].message)
    assert found > 1e6
    # Warnings are errors.
    assert max(map(number, (UNF(named, 16), UNF(fixed, 16, "tied"), UNF(fixed, 4)))) < 1e6
    wide = UNF(named, 2000)
    assert number(wide) > 1e6


def test_weights_that_are_given_are_not_warned_of():
    spec = make_spec({"w": (None, "h")}, {"w": jnp.zeros((60, 2))})
    layer, x = UNF(spec, 16), {"w": jax.ShapeDtypeStruct((60, 2, 16), jnp.float32)}
    with pytest.warns(UserWarning, match="because axes are fixed"):
        variables = jax.eval_shape(layer.init, jax.random.key(0), x)
    jax.eval_shape(layer.apply, variables, x)


def test_large_fixed_axes_are_refused():
    spec = make_spec({"x": (None, "a")}, {"x": jnp.zeros((65, 2))})
    with pytest.raises(ValueError, match=r"at most 64 positions.*'x'.*has 65.*PositionalEncoding"):
        UNF(spec, 1).init(jax.random.key(0), {"x": jnp.zeros((65, 2, 1))})
