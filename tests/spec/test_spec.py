"""Permutation specs: every container, what names mean, how specs compare. Errors: test_spec_errors.py."""

import collections
import copy
import dataclasses
import pickle
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

from optax_unf import PermutationSpec, make_spec
from optax_unf.spec.table import table


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
    assert make_spec({"a": {"value": ("n",)}, "b": ("n",)}, params) == spec
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


def test_long_names_are_numbered_and_lines_wrap():
    names = {f"blocks/{n}/kernel": (f"blocks/{n}/kernel:0", "x") for n in range(12)}
    spec = make_spec(names, {path: jnp.zeros((3, 2)) for path in names})
    printed = table(spec, 80)
    assert max(map(len, printed.splitlines())) <= 80
    assert "blocks/0/kernel   (3, 2)  (#1, 'x')" in printed
    assert "#12 'blocks/11/kernel:0'" in printed
    assert printed.count("[1]") == 12


@pytest.mark.parametrize("width", [10, 40, 60, 80, 120, 200])
def test_no_line_is_longer_than_the_terminal_is_wide(width, monkeypatch):
    names = {
        f"transformer_block_{n}/multi_head_self_attention/{which}/kernel": (
            "model",
            f"block_{n}/heads",
            f"block_{n}/size",
        )
        for n in range(2)
        for which in ("query", "key", "value")
    }
    monkeypatch.setenv("COLUMNS", str(width))
    printed = str(make_spec(names, {path: jnp.zeros((16, 4, 2)) for path in names}))
    lines = printed.splitlines()
    assert max(map(len, lines)) <= max(width, 40)
    assert sum("(16, 4, 2)" in line for line in lines) == len(names)
    if width >= 80:
        assert all(f"{path} " in printed and f"{path}[2]" in printed for path in names)
    else:
        assert any("…" in line and "/kernel" in line for line in lines)
