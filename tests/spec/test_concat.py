"""Concatenated axes and fixed parts of stated size: reading, the group's action, and parts."""

import copy
import itertools
import math
import pickle
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from concat_spaces import brief_concat_axes, concat_axes, make_concat_space, positions, separate_axes, size_of
from hypothesis import given, settings
from hypothesis import strategies as st

from optax_unf import Concat, Fixed, make_spec
from optax_unf.spec.leaf import join_parts, split_parts


def zeros(*shape):
    return np.zeros(shape, np.float32)


# The group's action.


def index_of(axis, g):
    """The permutation of a whole axis, as an index array."""
    if isinstance(axis, Concat):
        starts = itertools.accumulate((size_of(part) for part in axis.parts), initial=0)
        return np.concatenate([start + index_of(part, g) for start, part in zip(starts, axis.parts, strict=False)])
    if isinstance(axis, tuple):
        index = np.zeros(1, int)
        for factor in axis:
            index = (index[:, None] * size_of(factor) + index_of(factor, g)).ravel()
        return index
    return np.arange(axis.size) if isinstance(axis, Fixed) else np.asarray(g[axis])


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(st.lists(concat_axes(), min_size=1, max_size=3), st.integers(0, 2**31))
def test_the_action_permutes_each_part_within_itself(space, seed):
    spec = make_concat_space(space)
    rng = np.random.default_rng(seed)
    x = {leaf.path: jnp.asarray(rng.normal(size=(*leaf.shape, 2))) for leaf in spec.leaves}
    g = spec.random_permutation(jax.random.key(seed))
    y = spec.permute(g, x)
    for path, axes in zip(spec.paths, space, strict=True):
        expected = np.asarray(x[path])
        for k, axis in enumerate(axes):
            expected = np.take(expected, index_of(axis, g), k)
        np.testing.assert_array_equal(y[path], expected)
    back = spec.permute(spec.invert(g), y)
    for path in spec.paths:
        np.testing.assert_array_equal(back[path], x[path])


def test_sizes_are_in_the_order_of_first_occurrence():
    spec = make_spec((Concat("b", ("c", "a")), ("a", Concat("e", "c"))), zeros(7, 20), sizes={"a": 2, "c": 3, "e": 7})
    assert list(spec.sizes.items()) == [("b", 1), ("c", 3), ("a", 2), ("e", 7)]


def test_permuting_hidden_neurons_keeps_a_function_with_skip_connections():
    rng = np.random.default_rng(0)
    params = {"w1": rng.normal(size=(4, 6)), "w2": rng.normal(size=(10, 5)), "w3": rng.normal(size=(15, 2))}
    # Each layer reads the outputs of all before it.
    tree = {"w1": (None, "h1"), "w2": (Concat(None, "h1"), "h2"), "w3": (Concat(None, "h1", "h2"), None)}
    spec = make_spec(tree, params)
    assert spec.sizes == {"h1": 6, "h2": 5}

    def predict(params, x):
        for name in ("w1", "w2"):
            x = jnp.concatenate([x, jnp.tanh(x @ params[name])], 1)
        return x @ params["w3"]

    permuted = spec.permute(spec.random_permutation(jax.random.key(1)), params)
    assert not np.allclose(permuted["w3"], params["w3"])
    x = rng.normal(size=(3, 4))
    np.testing.assert_allclose(predict(permuted, x), predict(params, x), rtol=1e-4, atol=1e-5)


# Blocks.


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(brief_concat_axes(), st.integers(0, 2), st.integers(0, 2))
def test_parts_are_the_parts_and_join_to_the_leaf(axes, leading, trailing):
    (leaf,) = make_concat_space([axes]).leaves
    shape = (3,) * leading + leaf.shape + (2,) * trailing
    x = np.arange(math.prod(shape)).reshape(shape)
    parts = split_parts(jnp.asarray(x), leaf, leading)
    expected = positions(axes)
    assert len(parts) == len(leaf.parts) == len(expected)
    for part, found, entries in zip(leaf.parts, parts, expected, strict=True):
        assert found.shape == (3,) * leading + part.shape + (2,) * trailing
        whole = [np.arange(3)] * leading + entries + [np.arange(2)] * trailing
        np.testing.assert_array_equal(found.ravel(), x[np.ix_(*whole)].ravel())
    np.testing.assert_array_equal(join_parts(parts, leaf, leading), x)


@settings(max_examples=30, deadline=None)
@given(brief_concat_axes())
def test_parts_have_the_names_and_sizes_of_their_parts(axes):
    (leaf,) = make_concat_space([axes]).leaves
    for part, plain in zip(leaf.parts, separate_axes(axes), strict=True):
        assert [name for name, _ in part.factors if name is not None] == [n for n in plain if isinstance(n, str)]
        assert math.prod(part.shape) == math.prod(map(size_of, plain))
    assert len({part.path for part in leaf.parts}) == len(leaf.parts)


def test_paths_of_blocks_say_which_parts_they_are():
    spec = make_spec(
        {"w": ("a", Concat("a", "b"), (Concat("a", "b", "a"), "b"))}, {"w": zeros(2, 5, 21)}, sizes={"b": 3}
    )
    assert [part.path for part in spec.leaves[0].parts] == ["w#0,0", "w#0,1", "w#0,2", "w#1,0", "w#1,1", "w#1,2"]


def test_a_leaf_without_concat_is_its_own_only_block():
    spec = make_spec({"w": ("a", (None, "b")), "s": ()}, {"w": zeros(2, 6), "s": zeros()}, sizes={"b": 3})
    for leaf in spec.leaves:
        (part,) = leaf.parts
        assert (part.path, part.factors, part.shape) == (leaf.path, leaf.factors, leaf.factored_shape)
        jaxpr = jax.make_jaxpr(lambda x, leaf=leaf: join_parts(split_parts(x, leaf), leaf))(zeros(*leaf.shape))
        assert {str(equation.primitive) for equation in jaxpr.eqns} <= {"reshape"}


# Values.


def test_concat_and_fixed_are_values():
    axis = Concat("a", None, ("h", "d"), Fixed(2))
    assert repr(axis) == "Concat('a', None, ('h', 'd'), Fixed(2))"
    assert axis == eval(repr(axis)) == copy.deepcopy(axis) == pickle.loads(pickle.dumps(axis))
    assert len({axis, Concat("a", None, ("h", "d"), Fixed(2)), Concat("a"), Fixed(2), Fixed(3)}) == 4
    with pytest.raises(AttributeError):
        axis.parts = ()  # type: ignore[misc]
    assert repr(Fixed(np.int64(3))) == "Fixed(3)"


@pytest.mark.parametrize("size", [-1, 2.0, True, None, "n"])
def test_fixed_needs_a_size(size):
    with pytest.raises(ValueError, match="Fixed must have a size, a natural number, but has"):
        Fixed(size)


def test_concat_needs_parts():
    with pytest.raises(ValueError, match="Concat must have parts, but has none"):
        Concat()


# Sizes.


@pytest.mark.parametrize(
    ("tree", "shapes", "sizes"),
    [
        ({"x": (Concat("a", "b"),), "y": ("b",)}, {"x": (5,), "y": (2,)}, {"a": 3, "b": 2}),
        ({"x": (Concat("a", None),), "y": ("a",)}, {"x": (5,), "y": (5,)}, {"a": 5}),
        ({"x": (Concat("a", Fixed(2)),)}, {"x": (5,)}, {"a": 3}),
        ({"x": (Concat("a", ("a", Fixed(3))),)}, {"x": (8,)}, {"a": 2}),
        (
            {"x": (("h", Concat("a", ("b", "a"))),), "y": ("h", "b")},
            {"x": (24,), "y": (2, 3)},
            {"h": 2, "a": 3, "b": 3},
        ),
        (
            {"x": (Concat("a", "b"),), "y": (("b", "c"),), "z": (Concat("c", "c", "c"),)},
            {"x": (6,), "y": (8,), "z": (6,)},
            {"a": 2, "b": 4, "c": 2},
        ),
        ({"x": ((Fixed(3), "c", Fixed(2)),)}, {"x": (24,)}, {"c": 4}),
        ({"x": ((Fixed(3), "c", None),), "y": ("c",)}, {"x": (24,), "y": (4,)}, {"c": 4}),
        ({"x": (Concat("a", Fixed(3)),)}, {"x": (3,)}, {"a": 0}),
    ],
)
def test_sizes_follow(tree, shapes, sizes):
    spec = make_spec(tree, {path: zeros(*shape) for path, shape in shapes.items()})
    assert spec.sizes == sizes


FUSED = Concat(("h", "qk"), ("h", "qk"), ("h", "v"))


@pytest.mark.parametrize(
    ("axes", "size", "parts"),
    [
        ((Concat("a", "b"),), 6, ["size of 'a' in axis 0 of leaf 'x' does not follow", "sizes={'a': ...}).$"]),
        ((Concat("a", None),), 6, ["size of 'a'", "sizes={'a': ...}), or write Fixed(size) for None"]),
        ((FUSED,), 6, ["size of 'h'", "does not follow", "sizes={'h': ...}"]),
        ((Concat("a", ("a", "a")),), 6, ["size of 'a'", "does not follow"]),
        ((Concat(None, None),), 6, ["Axis 0 of leaf 'x'", "Concat(None, None)", "has 2", "Write Fixed(size)"]),
        ((Concat("a", "a"),), 5, ["Axis 0 of leaf 'x' is Concat('a', 'a') and", "a multiple of 2", "has 5"]),
        ((Concat("a", Fixed(7)),), 5, ["Concat('a', Fixed(7))", "7 and a multiple of 1", "has 5"]),
        ((Concat("a", Fixed(1), ("a", Fixed(2))),), 5, ["1 and a multiple of 3", "has 5"]),
        ((Fixed(4),), 5, ["Axis 0 of leaf 'x' is Fixed(4) and must have size 4, but has 5"]),
        ((("a", Fixed(4)),), 6, ["('a', Fixed(4))", "a multiple of 4", "has 6"]),
        ((Concat(Fixed(1), Fixed(2)),), 5, ["Concat(Fixed(1), Fixed(2)) and must have size 3, but has 5"]),
    ],
)
def test_sizes_that_do_not_follow_or_fit(axes, size, parts):
    with pytest.raises(ValueError, match=".*".join(map(escape, parts))):
        make_spec({"x": axes}, {"x": zeros(size)})


def escape(part):
    return re.escape(part.removesuffix("$")) + ("$" if part.endswith("$") else "")


def test_a_concat_that_does_not_fit_other_axes():
    message = r"Axis 0 of leaf 'x' is Concat\('a', 'b'\), with {'a': 2, 'b': 2}, and must have size 4, but has 5"
    with pytest.raises(ValueError, match=message):
        make_spec({"x": (Concat("a", "b"),), "y": ("a", "b")}, {"x": zeros(5), "y": zeros(2, 2)})
    with pytest.raises(ValueError, match=r"{'a': 9}, and must have a size that is 9 and a multiple of 1, but has 5"):
        make_spec({"x": (Concat("a", None),), "y": ("a",)}, {"x": zeros(5), "y": zeros(9)})


@pytest.mark.parametrize(
    ("axis", "message"),
    [
        (Concat("a", Concat("b")), r"leaf 'x' has Concat\('b'\) of type Concat inside of a Concat"),
        (("a", ("b", "c")), r"leaf 'x' has \('b', 'c'\) of type tuple inside of a tuple"),
        (Concat("a", ("b", ("c",))), r"has \('c',\) of type tuple inside of a tuple"),
        (Concat("a", ("b", Concat("c"))), r"has Concat\('c'\) of type Concat inside of a tuple"),
        (("a", Concat("b", ("c", ("d",)))), r"has \('d',\) of type tuple inside of a tuple"),
        (Concat("a", 1.5), r"leaf 'x' has 1.5 of type float"),
    ],
)
def test_what_is_nested_too_deeply_or_has_a_wrong_type(axis, message):
    with pytest.raises(TypeError, match=message):
        make_spec({"x": (axis,)}, {"x": zeros(12)})


# One meaning, one spec.


@pytest.mark.parametrize(
    ("one", "other", "size", "sizes"),
    [
        (Fixed(12), None, 12, {}),
        (("a",), "a", 12, {}),
        (("a", Fixed(6)), ("a", None), 12, {"a": 2}),
        (("a", Fixed(3), Fixed(2)), ("a", None), 12, {"a": 2}),
        (Concat("a", Fixed(10)), Concat("a", None), 12, {"a": 2}),
        (Concat("a", Fixed(4), Fixed(6)), Concat("a", None), 12, {"a": 2}),
        (Concat("a", (Fixed(2), Fixed(2)), Fixed(6)), Concat("a", None), 12, {"a": 2}),
        (Concat(None, "a", Fixed(4)), Concat(Fixed(6), "a", None), 12, {"a": 2}),
        (Concat(Fixed(3), Fixed(9)), None, 12, {}),
        (Concat("a"), "a", 12, {}),
        (Concat(("a", Fixed(6))), ("a", None), 12, {"a": 2}),
        ((Concat("a", "b"),), Concat("a", "b"), 5, {"a": 2, "b": 3}),
        (("a", Concat(("b", Fixed(2)))), ("a", "b", None), 12, {"a": 2, "b": 3}),
        (("a", Concat(Fixed(2), Fixed(4))), ("a", None), 12, {"a": 2}),
    ],
)
def test_axes_that_mean_the_same_are_written_alike(one, other, size, sizes):
    first, second = (make_spec({"x": (axis,)}, {"x": zeros(size)}, sizes=sizes) for axis in (one, other))
    assert first == second
    assert hash(first) == hash(second)


@pytest.mark.parametrize("axis", [Concat("a", "a"), Concat("a", None), Concat(None, "a"), (Fixed(2), "a", Fixed(3))])
def test_axes_are_kept_as_written_where_they_are_short(axis):
    size = {Concat("a", "a"): 4}.get(axis, 12)
    spec = make_spec({"x": (axis,)}, {"x": zeros(size)}, sizes={"a": 2})
    assert spec.leaves[0].axes == (axis,)


@settings(max_examples=30, deadline=None)
@given(st.lists(concat_axes(), min_size=1, max_size=3))
def test_the_axes_of_a_spec_make_it_again(space):
    spec = make_concat_space(space)
    params = {leaf.path: zeros(*leaf.shape) for leaf in spec.leaves}
    again = make_spec({leaf.path: leaf.axes for leaf in spec.leaves}, params, sizes=spec.sizes)
    assert again == spec
    assert pickle.loads(pickle.dumps(spec)) == spec


def test_table():
    spec = make_spec(
        {"w": (Concat("a", None, ("a", "b")), "b"), "x": ((Fixed(2), "a", Fixed(3)),)},
        {"w": zeros(10, 3), "x": zeros(12)},
    )
    assert [line.rstrip() for line in str(spec).splitlines()] == [
        "leaf  shape    axes",
        "w     (10, 3)  (Concat('a', None, ('a', 'b')), 'b')",
        "x     (12,)    ((Fixed(2), 'a', Fixed(3)),)",
        "",
        "name  size  acts on",
        "'a'   2     w[0], x[0]",
        "'b'   3     w[0], w[1]",
    ]
