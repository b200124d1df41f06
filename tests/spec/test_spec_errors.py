"""What wrong specs get: each error names the leaf, the requirement, what was found, and the mend."""

import collections
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_unf import make_spec


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


KERNEL, BIAS = zeros(2, 3), zeros(3)
LAYER = {"kernel": ("in", "out"), "bias": ("out",)}


def in_order(parts: list[str]) -> str:
    return ".*".join(map(re.escape, parts))


@pytest.mark.parametrize(
    ("tree", "params", "parts"),
    [
        (
            {"layer": {"kernel": ("in", "out")}},
            {"layer": {"kernel": KERNEL, "bias": BIAS}},
            ["must have an entry", "'layer/bias'", "only ['kernel']", "Add a tuple"],
        ),
        (
            {"kernel": ("in", "out")},
            {"layer": {"kernel": KERNEL, "bias": BIAS}},
            ["must have an entry", "'layer'", "only ['kernel']"],
        ),
        (
            {"kernel": ("in", "out"), "bais": ("out",)},
            {"kernel": KERNEL},
            ["'bais'", "the parameters lack", "they have ['kernel']", "mend its name"],
        ),
        (
            {"kernel": ("in", "out"), "scale": ()},
            {"kernel": KERNEL},
            ["'scale'", "the parameters lack", "they have ['kernel']"],
        ),
        (
            {"a": {"kernel": ("in", "out"), "deep": {"b": ("x",)}}},
            {"a": {"kernel": KERNEL}},
            ["'a/deep'", "the parameters lack"],
        ),
        (
            [("in", "out")],
            [KERNEL, BIAS],
            ["must have an entry", "'1'", "only ['0']"],
        ),
        (
            [("in", "out"), ("out",)],
            [KERNEL],
            ["'1'", "the parameters lack"],
        ),
        (
            {"layer": "dense"},
            {"layer": {"kernel": KERNEL}},
            ["must mirror", "'layer'", "'dense'", "Put a dict"],
        ),
        (
            {"layer": ("in", "out")},
            {"layer": {"kernel": KERNEL}},
            ["must have an entry", "'layer/kernel'"],
        ),
        (
            {"kernel": ("in",)},
            {"kernel": KERNEL},
            ["'kernel'", "one entry per axis", "(2, 3)", "has 1", "Write a name"],
        ),
        (
            {"kernel": ("in", "out", None)},
            {"kernel": KERNEL},
            ["'kernel'", "one entry per axis", "2 axes", "has 3"],
        ),
        (
            {"kernel": ()},
            {"kernel": KERNEL},
            ["'kernel'", "one entry per axis", "has 0"],
        ),
        (
            {"scale": ("n",)},
            {"scale": 1.0},
            ["'scale'", "one entry per axis", "0 axes", "has 1"],
        ),
        (
            ("n",),
            KERNEL,
            ["(the bare array)", "one entry per axis"],
        ),
        (
            {"kernel": ("in", "out"), "bias": ("in",)},
            {"kernel": KERNEL, "bias": BIAS},
            ["one size", "'in'", "size 3 in axis 0 of leaf 'bias'", "2 in axis 0 of leaf 'kernel'", "another name"],
        ),
        (
            {"kernel": ("n", "n")},
            {"kernel": KERNEL},
            ["one size", "'n'", "axis 0 of leaf 'kernel'", "axis 1 of leaf 'kernel'"],
        ),
        (
            {"a": ("h",), "b": (("h", "x"),)},
            {"a": zeros(3), "b": zeros(8)},
            ["Axis 0 of leaf 'b'", "('h', 'x')", "{'h': 3}", "a multiple of 3", "has 8"],
        ),
        (
            {"a": ("h",), "b": (("h", None),)},
            {"a": zeros(3), "b": zeros(8)},
            ["Axis 0 of leaf 'b'", "product ('h', None)", "{'h': 3}", "a multiple of 3", "has 8"],
        ),
        (
            {"a": ("h", "x"), "b": (("h", "x"),)},
            {"a": zeros(3, 2), "b": zeros(8)},
            ["Axis 0 of leaf 'b'", "product ('h', 'x')", "must have size 6", "has 8"],
        ),
        (
            {"b": ((None, None),)},
            {"b": zeros(8)},
            ["Axis 0 of leaf 'b'", "at most one None", "size 8", "has 2", "Write Fixed(size)"],
        ),
        (
            {"b": (("heads", "head_size"),)},
            {"b": zeros(8)},
            ["'heads'", "axis 0 of leaf 'b'", "does not follow", "make_spec(..., sizes={'heads': ...})"],
        ),
        (
            {"b": (("n", "n"),)},
            {"b": zeros(9)},
            ["'n'", "axis 0 of leaf 'b'", "does not follow"],
        ),
        (
            {"b": ((),)},
            {"b": zeros(2)},
            ["Axis 0 of leaf 'b'", "product ()", "must have size 1", "has 2"],
        ),
        (
            {1: ("a",), "1": ("b",)},
            {1: zeros(2)},
            ["distinct as strings", "'1'"],
        ),
    ],
)
def test_specs_that_do_not_match(tree, params, parts):
    with pytest.raises(ValueError, match=in_order(parts)):
        make_spec(tree, params)


@pytest.mark.parametrize(
    ("axes", "parts"),
    [
        ((0.0, "out"), ["strings, integers or None", "'kernel'", "0.0 of type float", "Write"]),
        ((-0.0, "out"), ["'kernel'", "-0.0 of type float"]),
        ((1.5, "out"), ["'kernel'", "1.5 of type float"]),
        ((True, "out"), ["'kernel'", "True of type bool"]),
        ((np.bool_(True), "out"), ["'kernel'", "type bool"]),
        ((np.float32(1), "out"), ["'kernel'", "float32"]),
        ((("h", 1.0), "out"), ["'kernel'", "1.0 of type float"]),
        ((("h", ("x",)), "out"), ["'kernel'", "type tuple"]),
        ((b"in", "out"), ["'kernel'", "type bytes"]),
        ("in", ["'kernel'", "must be a tuple of axis names", "'in'", "Write ('out', 'in')"]),
        (None, ["'kernel'", "must be a tuple of axis names", "None"]),
        ({"in": 0}, ["'kernel'", "must be a tuple of axis names"]),
        (1, ["'kernel'", "must be a tuple of axis names"]),
    ],
)
def test_names_of_wrong_types(axes, parts):
    with pytest.raises(TypeError, match=in_order(parts)):
        make_spec({"kernel": axes}, {"kernel": KERNEL})


@pytest.mark.parametrize(
    ("sizes", "error", "message"),
    [
        ({"haeds": 2}, ValueError, r"must have names of the spec, but has 'haeds'; the spec has 'head_size', 'heads'"),
        ({None: 2}, ValueError, "must have names of the spec"),
        ({"heads": 2.0}, ValueError, "must give 'heads' a size, a natural number, but gives 2.0"),
        ({"heads": True}, ValueError, "natural number"),
        ({"heads": -2}, ValueError, "natural number"),
        ({"heads": 4}, ValueError, r"Axis 0 of leaf 'b' .* \{'heads': 4\}, .* 6"),
        ({"heads": 2, "head_size": 2}, ValueError, "Axis 0 of leaf 'b' .* must have size 4, but has 6"),
        ({True: 2}, TypeError, "the argument sizes has True of type bool"),
        ({0.0: 2}, TypeError, "the argument sizes has 0.0 of type float"),
    ],
)
def test_given_sizes_that_cannot_be(sizes, error, message):
    with pytest.raises(error, match=message):
        make_spec({"b": (("heads", "head_size"),)}, {"b": zeros(6)}, sizes=sizes)


def test_given_size_against_an_axis():
    with pytest.raises(ValueError, match=r"'n' has size 4 in the argument sizes and 3 in axis 0 of leaf 'b'"):
        make_spec({"b": ("n",)}, {"b": zeros(3)}, sizes={"n": 4})


@pytest.mark.parametrize(
    "params",
    [
        {"a/b": zeros(2), "a": {"b": zeros(3)}},
        {"a": {"b/c": zeros(2)}, "a/b": {"c": zeros(3)}},
        collections.OrderedDict([(1, zeros(2)), ("1", zeros(3))]),
        {"x": collections.OrderedDict([("1", zeros(2)), (1, zeros(3))])},
    ],
)
def test_two_leaves_with_one_path(params):
    for tree in (None, jax.tree.map(lambda x: ("n",), params)):
        with pytest.raises(ValueError, match=r"distinct paths, but two of this tree have the path '.*'.*Rename"):
            make_spec(tree, params)


def test_slashes_in_keys_are_fine_where_paths_differ():
    # Haiku names its modules so.
    params = {"mlp/~/linear_0": {"w": zeros(2, 3)}, "mlp/~/linear_1": {"w": zeros(3, 4)}}
    spec = make_spec({"mlp/~/linear_0": {"w": (0, 1)}, "mlp/~/linear_1": {"w": (1, 2)}}, params)
    assert spec.paths == ("mlp/~/linear_0/w", "mlp/~/linear_1/w")


def test_trees_that_do_not_fit_the_spec():
    spec = make_spec(LAYER, {"kernel": KERNEL, "bias": BIAS})
    g = spec.random_permutation(jax.random.key(0))
    with pytest.raises(
        ValueError,
        match=r"gradients must have the leaves .* lacks 'bias'.*It has 'kernel'.*Give gradients that are a tree like",
    ):
        spec.flatten({"kernel": KERNEL}, "gradients")
    with pytest.raises(ValueError, match=r"lacks 'bias'.*no leaves"):
        spec.permute(g, {})
    with pytest.raises(ValueError, match=r"no entry for the leaf 'extra' of the tree.*Add it"):
        spec.permute(g, {"kernel": KERNEL, "bias": BIAS, "extra": BIAS})
    with pytest.raises(ValueError, match=r"Leaf 'kernel' must have a shape that starts with \(2, 3\).*has \(3, 2\)"):
        spec.permute(g, {"kernel": KERNEL.T, "bias": BIAS})
    with pytest.raises(ValueError, match=r"lacks 'bias'"):
        spec.unflatten([BIAS, KERNEL], like={"kernel": KERNEL})
    with pytest.raises(ValueError, match="no entry for the leaf 'extra'"):
        spec.unflatten([BIAS, KERNEL], like={"kernel": KERNEL, "bias": BIAS, "extra": BIAS})


def test_permutations_that_do_not_fit_the_spec():
    params = {"kernel": KERNEL, "bias": BIAS}
    spec = make_spec(LAYER, params)
    for act in (lambda g: spec.permute(g, params), spec.invert):
        with pytest.raises(ValueError, match=r"shape \(2,\) for the name 'in', but has none.*random_permutation"):
            act({"out": jnp.arange(3)})
        with pytest.raises(ValueError, match=r"shape \(3,\) for the name 'out', but has \(2,\)"):
            act({"out": jnp.arange(2), "in": jnp.arange(2)})
