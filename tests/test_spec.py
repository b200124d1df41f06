"""Permutation specs: every container, the group's action, and what wrong specs get."""

import collections
import copy
import dataclasses
import math
import pickle
import re
from typing import Any, NamedTuple

import chex
import flax
import flax.linen
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import freeze
from hypothesis import given, settings
from hypothesis import strategies as st

from optax_unf import PermutationSpec, make_spec


class Layer(NamedTuple):
    kernel: Any
    bias: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Dense:
    kernel: Any
    bias: Any
    activation: str = dataclasses.field(default="relu", metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scaled:
    value: Any
    scale: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Single:
    value: Any


class TwoLayers(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.layers = nnx.List([nnx.Linear(2, 3, rngs=rngs), nnx.Linear(3, 4, rngs=rngs)])
        self.value = nnx.Param(jnp.ones(4))


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def axes_of(spec: PermutationSpec) -> dict[str, Any]:
    return {leaf.path: leaf.axes for leaf in spec.leaves}


# Containers.

LAYER = {"kernel": ("in", "out"), "bias": ("out",)}
CONTAINERS = {
    "dict": {"kernel": zeros(2, 3), "bias": zeros(3)},
    "ordered dict": collections.OrderedDict(kernel=zeros(2, 3), bias=zeros(3)),
    "FrozenDict": freeze({"kernel": zeros(2, 3), "bias": zeros(3)}),
    "NamedTuple": Layer(zeros(2, 3), zeros(3)),
    "dataclass": Dense(zeros(2, 3), zeros(3)),
    "nnx.State": nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Param),
    "nnx module": nnx.Linear(2, 3, rngs=nnx.Rngs(0)),
    "linen.Partitioned": {
        "kernel": flax.linen.Partitioned(zeros(2, 3), names=(None, None)),
        "bias": flax.linen.Partitioned(zeros(3), names=(None,)),
    },
    "shapes": {"kernel": jax.ShapeDtypeStruct((2, 3), jnp.float32), "bias": jax.ShapeDtypeStruct((3,), jnp.float32)},
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_plain_dict_spec_fits_every_container(container):
    reference = make_spec(LAYER, CONTAINERS["dict"])
    spec = make_spec(LAYER, CONTAINERS[container])
    assert spec == reference
    assert hash(spec) == hash(reference)
    assert axes_of(spec) == {"bias": ("out",), "kernel": ("in", "out")}
    assert spec.sizes == {"out": 3, "in": 2}
    assert make_spec(None, CONTAINERS[container]) == make_spec(None, CONTAINERS["dict"])


@pytest.mark.parametrize("container", [c for c in CONTAINERS if c != "shapes"])
def test_flatten_and_unflatten_keep_the_container(container):
    params = CONTAINERS[container]
    spec = make_spec(LAYER, params)
    leaves = spec.flatten(params)
    assert [np.shape(x) for x in leaves] == [(3,), (2, 3)]
    again = spec.unflatten(leaves, like=params)
    assert jax.tree.structure(again) == jax.tree.structure(params)
    chex.assert_trees_all_equal(again, params)


@pytest.mark.parametrize(
    "tree",
    [
        LAYER,
        freeze(LAYER),
        Layer(**LAYER),
        Dense(**LAYER),
        Dense(**LAYER, activation="tanh"),
        {"kernel": ["in", "out"], "bias": ["out"]},
        {"kernel": nnx.Param(("in", "out")), "bias": nnx.Param(("out",))},
    ],
    ids=["dict", "FrozenDict", "NamedTuple", "dataclass", "dataclass, other metadata", "lists of names", "Variables"],
)
@pytest.mark.parametrize("container", ["dict", "NamedTuple", "dataclass", "nnx.State"])
def test_spec_may_be_in_every_container(tree, container):
    assert make_spec(tree, CONTAINERS[container]) == make_spec(LAYER, CONTAINERS["dict"])


def test_lists_and_tuples_stand_for_each_other():
    params = [(zeros(2, 3), zeros(3)), (zeros(3, 4), zeros(4))]
    names = [((0, 1), (1,)), ((1, 2), (2,))]
    spec = make_spec(names, params)
    assert spec.paths == ("0/0", "0/1", "1/0", "1/1")
    assert spec.sizes == {0: 2, 1: 3, 2: 4}
    assert make_spec(tuple(map(list, names)), tuple(map(list, params))) == spec
    assert make_spec({0: dict(enumerate(names[0])), "1": list(names[1])}, params) == spec


def test_nested_nnx_state_with_a_list_and_a_parameter_called_value():
    params = nnx.state(TwoLayers(nnx.Rngs(0)), nnx.Param)
    tree = {
        "layers": [{"kernel": (0, 1), "bias": (1,)}, {"kernel": (1, 2), "bias": (2,)}],
        "value": (2,),
    }
    spec = make_spec(tree, params)
    assert spec.paths == ("layers/0/bias", "layers/0/kernel", "layers/1/bias", "layers/1/kernel", "value")
    assert spec == make_spec(tree, nnx.to_pure_dict(params))
    permuted = spec.permute(spec.random_permutation(jax.random.key(0)), params)
    assert isinstance(permuted, nnx.State)
    assert jax.tree.structure(permuted) == jax.tree.structure(params)


def test_dataclass_with_a_field_called_value():
    params = {"a": Scaled(zeros(3), zeros())}
    spec = make_spec({"a": {"value": ("n",), "scale": ()}}, params)
    assert axes_of(spec) == {"a/scale": (), "a/value": ("n",)}
    assert make_spec({"a": Scaled(("n",), ())}, params) == spec


def test_dataclass_with_only_a_field_called_value_is_a_box():
    params = {"a": Single(zeros(3)), "b": Single(Single(zeros(3)))}
    spec = make_spec({"a": Single(("n",)), "b": ("n",)}, params)
    assert axes_of(spec) == {"a": ("n",), "b": ("n",)}
    chex.assert_trees_all_equal(spec.unflatten(spec.flatten(params), params), params)


def test_struct_dataclass():
    @flax.struct.dataclass
    class Struct:
        kernel: Any
        bias: Any
        width: int = flax.struct.field(pytree_node=False, default=3)

    spec = make_spec(LAYER, CONTAINERS["dict"])
    assert make_spec(LAYER, Struct(zeros(2, 3), zeros(3))) == spec
    assert make_spec(Struct(("in", "out"), ("out",)), Struct(zeros(2, 3), zeros(3))) == spec


def test_bare_array():
    spec = make_spec(("n", "m"), zeros(2, 3))
    assert spec.paths == ("",)
    assert spec.sizes == {"n": 2, "m": 3}
    assert "(bare array)" in str(spec)
    assert make_spec(None, zeros(2, 3)).sizes == {":0": 2, ":1": 3}


@pytest.mark.parametrize("scalar", [zeros(), 1.0, jax.ShapeDtypeStruct((), jnp.float32)])
def test_scalars(scalar):
    assert axes_of(make_spec((), scalar)) == {"": ()}
    assert make_spec({"a": ()}, {"a": scalar}).sizes == {}
    assert make_spec(None, {"a": scalar}) == make_spec({"a": ()}, {"a": scalar})


@pytest.mark.parametrize("empty", [{}, (), [], None, {"a": {}, "b": None}, {"a": optax.MaskedNode()}])
@pytest.mark.parametrize("tree", [None, {}, (), {"a": ("n",)}])
def test_empty_trees(empty, tree):
    spec = make_spec(tree, empty)
    assert spec == PermutationSpec(())
    assert spec.sizes == {}
    g = spec.random_permutation(jax.random.key(0))
    assert g == {}
    assert spec.invert(g) == {}
    assert jax.tree.structure(spec.permute(g, empty)) == jax.tree.structure(empty)
    assert "leaf" in str(spec)


def test_what_the_spec_says_about_masked_leaves_is_ignored():
    params = {"kernel": zeros(2, 3), "bias": optax.MaskedNode(), "norm": {"scale": None}}
    tree = {**LAYER, "norm": {"scale": ("out",)}}
    assert axes_of(make_spec(tree, params)) == {"kernel": ("in", "out")}
    assert axes_of(make_spec({"kernel": ("in", "out")}, params)) == {"kernel": ("in", "out")}
    state = jax.tree.map(lambda x: optax.MaskedNode() if x.ndim == 1 else x, CONTAINERS["nnx.State"])
    assert axes_of(make_spec(LAYER, state)) == {"kernel": ("in", "out")}


def test_empty_entries_for_what_the_parameters_lack_are_ignored():
    assert make_spec({**LAYER, "relu": {}, "dropout": None}, CONTAINERS["dict"]) == make_spec(LAYER, CONTAINERS["dict"])


# Names.


def test_integers_and_strings_are_different_names():
    spec = make_spec({"a": (1, "1"), "b": (np.int64(1), -1)}, {"a": zeros(2, 3), "b": zeros(2, 4)})
    assert spec.sizes == {1: 2, "1": 3, -1: 4}
    assert all(type(name) in (int, str) for name in spec.sizes)


def test_none_is_not_permuted():
    params = {"conv": np.arange(24.0).reshape(2, 3, 4), "bias": np.arange(4.0)}
    spec = make_spec({"conv": (None, "in", "out"), "bias": ("out",)}, params)
    assert spec.sizes == {"out": 4, "in": 3}
    out = spec.permute({"in": jnp.array([2, 0, 1]), "out": jnp.arange(4)}, params)
    chex.assert_trees_all_equal(out, {"conv": params["conv"][:, [2, 0, 1]], "bias": params["bias"]})
    # Two fixed axes have nothing to do with each other.
    assert make_spec((None, None), zeros(2, 3)).sizes == {}


def test_default_spec_gives_every_axis_a_name_of_its_own():
    spec = make_spec(None, {"a": zeros(2, 2), "b": {"c": zeros(2), "d": zeros()}})
    assert spec.sizes == {"a:0": 2, "a:1": 2, "b/c:0": 2}
    assert axes_of(spec) == {"a": ("a:0", "a:1"), "b/c": ("b/c:0",), "b/d": ()}


def test_product_axes_follow_from_other_axes():
    params = {"qkv": zeros(5, 3 * 2 * 4), "out": zeros(2, 4, 5), "gates": zeros(4, 3 * 5), "fused": zeros(10)}
    tree = {
        "qkv": ("model", (None, "heads", "head_size")),
        "out": ("heads", "head_size", "model"),
        "gates": ("head_size", (None, "model")),
        "fused": (("heads", "unknown"),),
    }
    spec = make_spec(tree, params)
    factors = {leaf.path: leaf.factors for leaf in spec.leaves}
    assert factors == {
        "fused": (("heads", 2), ("unknown", 5)),
        "gates": (("head_size", 4), (None, 3), ("model", 5)),
        "out": (("heads", 2), ("head_size", 4), ("model", 5)),
        "qkv": (("model", 5), (None, 3), ("heads", 2), ("head_size", 4)),
    }
    assert {leaf.path: leaf.factored_shape for leaf in spec.leaves}["qkv"] == (5, 3, 2, 4)


def test_product_axes_solve_one_another():
    spec = make_spec(
        {"a": (("x", "y"),), "b": (("y", "z"),), "c": ("z",)}, {"a": zeros(6), "b": zeros(12), "c": zeros(4)}
    )
    assert spec.sizes == {"x": 2, "y": 3, "z": 4}


def test_sizes_of_product_axes_may_be_given():
    params = {"kernel": zeros(3, 6)}
    tree = {"kernel": ("in", ("heads", "head_size"))}
    spec = make_spec(tree, params, sizes={"heads": 2})
    assert spec.sizes == {"in": 3, "heads": 2, "head_size": 3}
    numpy_sizes: Any = {"heads": np.int64(2)}
    assert make_spec(tree, params, sizes=numpy_sizes) == spec
    assert spec == make_spec(tree, params, sizes={"head_size": 3})


def test_a_product_axis_is_permuted_factor_by_factor():
    x = np.arange(6.0)
    spec = make_spec((("a", "b"),), x, sizes={"a": 2})
    out = spec.permute({"a": jnp.array([1, 0]), "b": jnp.array([2, 0, 1])}, x)
    chex.assert_trees_all_equal(out, jnp.array([5.0, 3.0, 4.0, 2.0, 0.0, 1.0]))


def test_axes_of_size_zero():
    params = {"a": zeros(0, 2), "b": zeros(0)}
    spec = make_spec({"a": ("e", "n"), "b": (("e", None),)}, params)
    assert spec.sizes == {"e": 0, "n": 2}
    g = spec.random_permutation(jax.random.key(0))
    chex.assert_trees_all_equal(spec.permute(g, params), params)


# Value semantics.


def test_equality_is_of_paths_shapes_and_axes():
    params = {"a": zeros(2), "b": zeros(2)}
    spec = make_spec({"a": ("x",), "b": ("x",)}, params)
    assert spec == make_spec({"b": ("x",), "a": ("x",)}, {"b": zeros(2), "a": zeros(2)})
    others = [
        make_spec({"a": ("x",), "b": ("y",)}, params),
        make_spec({"a": ("x",), "b": (None,)}, params),
        make_spec({"a": ("x",), "b": ("x",)}, {"a": zeros(3), "b": zeros(3)}),
        make_spec({"a": ("x",), "c": ("x",)}, {"a": zeros(2), "c": zeros(2)}),
    ]
    assert len({spec, *others}) == 5


def test_immutable():
    spec = make_spec(LAYER, CONTAINERS["dict"])
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.leaves = ()  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.leaves[0].axes = ()  # type: ignore[misc]
    spec.sizes["in"] = 7
    assert spec.sizes == {"out": 3, "in": 2}


def test_a_spec_does_not_follow_later_changes_of_the_tree():
    names = {"kernel": ["in", "out"], "bias": ["out"]}
    spec = make_spec(names, CONTAINERS["dict"])
    names["bias"][0] = "other"
    assert spec == make_spec(LAYER, CONTAINERS["dict"])


def test_copies_and_pickles_are_equal():
    spec = make_spec(LAYER, CONTAINERS["dict"])
    assert spec.sizes
    assert spec.paths
    assert copy.deepcopy(spec) == spec == pickle.loads(pickle.dumps(spec))


def test_static_argument_of_jit():
    spec = make_spec(LAYER, CONTAINERS["dict"])
    g = spec.random_permutation(jax.random.key(0))
    traces = []

    def permute(spec, g, params):
        traces.append(spec)
        return spec.permute(g, params)

    jitted = jax.jit(permute, static_argnums=0)
    params = jax.tree.map(lambda x: np.random.default_rng(0).normal(size=x.shape), CONTAINERS["dict"])
    chex.assert_trees_all_equal(jitted(spec, g, params), spec.permute(g, params))
    jitted(make_spec(LAYER, CONTAINERS["dataclass"]), g, params)
    assert len(traces) == 1


def test_leaves_are_in_the_order_a_person_expects():
    params = {f"block_{i}": zeros(1) for i in (10, 9, 2, 1)} | {"block_02": zeros(1), "a10b": zeros(1), "a9b": zeros(1)}
    spec = make_spec(None, params)
    assert spec.paths == ("a9b", "a10b", "block_1", "block_02", "block_2", "block_9", "block_10")


def test_table():
    params = {
        "layer1": {"weight": zeros(3, 2), "bias": zeros(3)},
        "conv": zeros(5, 3),
        "qkv": zeros(6),
        "scale": zeros(),
    }
    tree = {
        "layer1": {"weight": ("n2", "n1"), "bias": ("n2",)},
        "conv": (None, "n2"),
        "qkv": (("n1", "n2"),),
        "scale": (),
    }
    assert [line.rstrip() for line in str(make_spec(tree, params)).splitlines()] == [
        "leaf           shape   axes",
        "conv           (5, 3)  (None, 'n2')",
        "layer1/bias    (3,)    ('n2',)",
        "layer1/weight  (3, 2)  ('n2', 'n1')",
        "qkv            (6,)    (('n1', 'n2'),)",
        "scale          ()      ()",
        "",
        "name  size  acts on",
        "'n2'  3     conv[1], layer1/bias[0], layer1/weight[0], qkv[0]",
        "'n1'  2     layer1/weight[1], qkv[0]",
    ]


# The group.


def test_permute_by_hand():
    params = {"w": jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), "b": jnp.array([7.0, 8.0, 9.0])}
    spec = make_spec({"w": ("out", "in"), "b": ("out",)}, params)
    out = spec.permute({"out": jnp.array([2, 0, 1]), "in": jnp.array([1, 0])}, params)
    expected = {"w": jnp.array([[6.0, 5.0], [2.0, 1.0], [4.0, 3.0]]), "b": jnp.array([9.0, 7.0, 8.0])}
    chex.assert_trees_all_equal(out, expected)


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


@settings(max_examples=50, deadline=None)
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


@settings(max_examples=25, deadline=None)
@given(spaces(), st.integers(0, 2**31))
def test_the_action_composes(space, seed):
    spec, params = make(space)
    g, h = (spec.random_permutation(key) for key in jax.random.split(jax.random.key(seed)))
    both = {name: h[name][g[name]] for name in spec.sizes}
    chex.assert_trees_all_equal(spec.permute(g, spec.permute(h, params)), spec.permute(both, params))
    identity = {name: jnp.arange(size) for name, size in spec.sizes.items()}
    chex.assert_trees_all_equal(spec.permute(identity, params), params)


@settings(max_examples=50, deadline=None)
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


# Errors: each names the leaf, the requirement, what was found, and the mend.

KERNEL, BIAS = zeros(2, 3), zeros(3)


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
    spec = make_spec(LAYER, CONTAINERS["dict"])
    g = spec.random_permutation(jax.random.key(0))
    with pytest.raises(
        ValueError, match=r"gradients must have the leaves .* lacks 'bias'.*It has 'kernel'.*Make the spec"
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
    params = CONTAINERS["dict"]
    spec = make_spec(LAYER, params)
    for act in (lambda g: spec.permute(g, params), spec.invert):
        with pytest.raises(ValueError, match=r"shape \(2,\) for the name 'in', but has none.*random_permutation"):
            act({"out": jnp.arange(3)})
        with pytest.raises(ValueError, match=r"shape \(3,\) for the name 'out', but has \(2,\)"):
            act({"out": jnp.arange(2), "in": jnp.arange(2)})
