"""The flax modules besides UNF: NFN, invariant pooling, positional encoding, Deep Sets, sequences."""

import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spaces import (
    assert_close,
    both_orders,
    make_space,
    random_features,
    random_spaces,
    randomize,
    rank,
    stacked_basis_maps,
    stacked_layer_maps,
)

from optax_unf import Inferred, make_spec
from optax_unf.equivariant.basis import valid_partitions
from optax_unf.nn import (
    NFN,
    UNF,
    DeepSets,
    InvariantPool,
    InvariantPredictor,
    PositionalEncoding,
    Sequential,
    nf_relu,
    pointwise,
)


def spec_of(axes, size=3, **sizes):
    """A spec whose names have the given sizes, or `size`; a fixed axis has two positions."""
    known = {None: 2, **sizes}

    def axis_size(axis):
        return math.prod(known.get(name, size) for name in (axis if isinstance(axis, tuple) else (axis,)))

    params = {path: jnp.zeros(tuple(axis_size(axis) for axis in leaf)) for path, leaf in axes.items()}
    names = {name for leaf in axes.values() for axis in leaf for name in (axis if isinstance(axis, tuple) else (axis,))}
    return make_spec(axes, params, sizes={name: known.get(name, size) for name in names if name is not None})


def mlp(sizes, biases=None, transposed=None):
    """The spec of an MLP; paths are such that the spec's order of leaves is not the chain's."""
    depth = len(sizes) - 1
    biases = [True] * depth if biases is None else biases
    transposed = [False] * depth if transposed is None else transposed
    axes = {}
    for i in range(depth):
        kernel = (f"n{i}", f"n{i + 1}")
        axes[f"layer{depth - i}/kernel"] = kernel[::-1] if transposed[i] else kernel
        if biases[i]:
            axes[f"layer{depth - i}/bias"] = (f"n{i + 1}",)
    return spec_of(axes, **{f"n{i}": size for i, size in enumerate(sizes)})


CNN = {
    "conv1/kernel": (None, None, "image", "c1"),
    "conv1/bias": ("c1",),
    "conv2/kernel": (None, None, "c1", "c2"),
    "conv2/bias": ("c2",),
    # Flattened positions and channels, as between a convolution and a dense layer.
    "dense/kernel": ((None, "c2"), "classes"),
    "dense/bias": ("classes",),
}


def random_variables(layer, x, seed):
    key = jax.random.key(seed)
    return randomize(jax.eval_shape(layer.init, key, x), key)


# NFN.


@pytest.mark.slow
@pytest.mark.parametrize(
    "spec",
    [
        mlp([4, 5]),
        mlp([4, 5, 3, 6], biases=[True, False, True], transposed=[False, True, False]),
        spec_of(CNN, size=4),
        spec_of({"bias": ("n",)}, size=5),
        spec_of({"w": ("a", "b"), "input_bias": ("a",)}, a=4),
    ],
    ids=["dense", "mlp", "cnn", "bias", "input_bias"],
)
def test_nfn_commutes_with_the_group(spec):
    keys = jax.random.split(jax.random.key(0))
    layer, x = NFN(spec, 2), random_features(spec, keys[0], 3)
    variables = random_variables(layer, x, seed=1)
    once, twice = both_orders(lambda x: layer.apply(variables, x), spec)(spec.random_permutation(keys[1]), x)
    assert_close(once, twice)


@pytest.mark.slow
@pytest.mark.parametrize("depth", [1, 4])
def test_nfn_spans_what_algorithm_1_spans(depth):
    spec = mlp([2, 3, 2, 3, 2][: depth + 1])
    with jax.enable_x64(True):
        mine, theirs = stacked_layer_maps(NFN(spec, 1, use_bias=False), spec), stacked_basis_maps(spec)
    # No coefficient is redundant.
    assert len(mine) == len(theirs) == rank(mine) == rank(np.concatenate([mine, theirs]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "biases", "transposed"),
    [
        ([2, 3, 2, 2, 3], [True, False, True, False], [False, True, True, False]),
        ([3, 1, 2], [True, True], [True, False]),
        ([1, 2, 1], [False, True], [False, False]),
    ],
)
def test_nfn_spans_what_algorithm_1_spans_for_any_order_of_axes(sizes, biases, transposed):
    spec = mlp(sizes, biases, transposed)
    with jax.enable_x64(True):
        mine, theirs = stacked_layer_maps(NFN(spec, 1, use_bias=False), spec), stacked_basis_maps(spec)
    assert rank(mine) == rank(theirs) == rank(np.concatenate([mine, theirs]))


def test_nfn_spans_what_unf_spans_on_a_cnn():
    spec = spec_of({"conv": (None, "a", "b"), "bias": ("b",), "dense": ((None, "b"), "c")}, size=2)
    with jax.enable_x64(True):
        mine = stacked_layer_maps(NFN(spec, 1, use_bias=False), spec)
        theirs = stacked_layer_maps(UNF(spec, 1, use_bias=False), spec)
    assert rank(mine) == rank(theirs) == rank(np.concatenate([mine, theirs]))


def test_nfn_bias_spans_the_constant_maps():
    spec = spec_of({"conv": (None, "a", "b"), "bias": ("b",)})
    layer = NFN(spec, 4)
    zeros = {leaf.path: jnp.zeros((*leaf.shape, 1)) for leaf in spec.leaves}
    variables = jax.jit(layer.init)(jax.random.key(0), zeros)
    # Four for each position of the kernel, and four for the bias.
    assert variables["params"]["bias"].shape == (12,)
    assert not variables["params"]["bias"].any()
    y = jax.jit(layer.apply)(randomize(variables, jax.random.key(1)), zeros)
    assert_close(y["conv"], jnp.broadcast_to(y["conv"][:, :1, :1], y["conv"].shape), 0)
    assert len(np.unique(y["conv"][:, 0, 0])) == 8


def test_nfn_uses_means():
    """Constant features give the same at every width."""
    narrow, wide = mlp([2, 3, 4]), mlp([20, 30, 40])
    inputs = [
        {leaf.path: jnp.full((*leaf.shape, 2), float(k)) for k, leaf in enumerate(spec.leaves)}
        for spec in (narrow, wide)
    ]
    variables = random_variables(NFN(narrow, 3), inputs[0], seed=0)
    few, many = (jax.jit(NFN(s, 3).apply)(variables, x) for s, x in zip((narrow, wide), inputs, strict=True))
    for path in narrow.paths:
        corner = few[path][(slice(1),) * (few[path].ndim - 1)]
        np.testing.assert_allclose(many[path], jnp.broadcast_to(corner, many[path].shape), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "width"), [(1, 32), (16, 4)])
def test_nfn_outputs_have_unit_scale_at_initialization(depth, width):
    spec = mlp([width] * (depth + 1))
    init = jax.jit(NFN(spec, 32).init_with_output)
    keys = jax.random.split(jax.random.key(depth + width), 3)
    normal = random_features(spec, keys[0], 16)
    constant = {
        path: jnp.broadcast_to(jax.random.normal(k, 16), x.shape)
        for (path, x), k in zip(normal.items(), jax.random.split(keys[1], len(normal)), strict=True)
    }
    for x in (normal, constant):
        for y in jax.tree.leaves(init(keys[2], x)[0]):
            assert 0.3 < float(jnp.sqrt(jnp.mean(y**2))) < 3


def equations(jaxpr):
    inner = [v for eqn in jaxpr.eqns for v in eqn.params.values() if hasattr(v, "eqns") or hasattr(v, "jaxpr")]
    return len(jaxpr.eqns) + sum(equations(getattr(v, "jaxpr", v)) for v in inner)


def test_nfn_is_linear_in_depth():
    arrays, sizes = [], []
    for depth in (4, 8, 16):
        spec = mlp([2] * (depth + 1))
        x = random_features(spec, jax.random.key(0), 1)
        variables = jax.eval_shape(NFN(spec, 1).init, jax.random.key(0), x)
        arrays.append(len(jax.tree.leaves(variables)))
        sizes.append(equations(jax.make_jaxpr(NFN(spec, 1).apply)(variables, x).jaxpr))
    assert arrays[2] - arrays[1] == 2 * (arrays[1] - arrays[0])
    assert sizes[2] - sizes[1] == 2 * (sizes[1] - sizes[0])
    # The bias, the matrix for whole leaves, one for each layer of neurons and one for each kernel.
    assert arrays[2] == 1 + 1 + 17 + 16


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"w": ("a", "a")}, r"one permuted axis or two with different names\. But leaf 'w' .* has 'a', 'a'"),
        ({"w": ("a", "b"), "qkv": ("b", "c", "d")}, r"leaf 'qkv' .* has 'b', 'c', 'd'"),
        ({"w": ("a", "b"), "scale": ()}, r"leaf 'scale' .* has none"),
        ({"w": ("a", "b"), "taps": (None,)}, r"leaf 'taps' .* has none"),
        ({"b1": ("a",), "b2": ("a",), "w": ("a", "b")}, r"one bias\. But leaf 'b2' .* has 'a', like 'b1'"),
        (
            {"w1": ("a", "b"), "w2": ("b", "c"), "w3": ("d", "b")},
            r"two kernels and one bias\. But leaf 'w3' .* has 'b', like 'w1' and 'w2'",
        ),
        ({"w1": ("a", "b"), "w2": ("b", "a")}, r"sharing one name with the next\. But leaf 'w2' .* closes a cycle"),
        ({"w1": ("a", "b"), "w2": ("b", "c"), "w3": ("c", "a")}, r"leaf 'w3' .* closes a cycle"),
        ({"w1": ("a", "b"), "w2": ("c", "d")}, r"one chain\. But leaf 'w2' .* is not linked to leaf 'w1'"),
        ({"b": ("c",), "w": ("a", "b")}, r"one chain\. But leaf 'w' .* is not linked to leaf 'b'"),
    ],
)
def test_nfn_refuses_what_is_not_feed_forward_at_construction(axes, message):
    with pytest.raises(ValueError, match=message + r".*Use optax_unf\.nn\.UNF"):
        NFN(spec_of(axes), 1)


def test_nfn_checks_the_features():
    spec = mlp([2, 3])
    x = random_features(spec, jax.random.key(0), 1)
    with pytest.raises(ValueError, match="must have shape"):
        jax.jit(NFN(spec, 1).init)(jax.random.key(0), {path: leaf[..., 0] for path, leaf in x.items()})


@pytest.mark.promotes("leaves have several dtypes")
def test_nfn_keeps_the_dtype_of_each_leaf():
    spec = mlp([2, 3])
    x = random_features(spec, jax.random.key(0), 1)
    x["layer1/bias"] = x["layer1/bias"].astype(jnp.bfloat16)
    y, _ = jax.jit(NFN(spec, 2).init_with_output)(jax.random.key(0), x)
    assert {path: leaf.dtype for path, leaf in y.items()} == {path: leaf.dtype for path, leaf in x.items()}


@pytest.mark.parametrize("sizes", [[0, 3, 2], [3, 0, 2], [0, 0]])
def test_nfn_of_empty_axes_is_finite(sizes):
    spec = mlp(sizes)
    x = random_features(spec, jax.random.key(0), 2)
    y, _ = jax.jit(NFN(spec, 3).init_with_output)(jax.random.key(1), x)
    for path, leaf in y.items():
        assert leaf.shape == (*x[path].shape[:-1], 3)
        assert jnp.isfinite(leaf).all()


def test_nfn_of_no_leaves():
    assert NFN(make_spec({}, {}), 1).init_with_output(jax.random.key(0), {})[0] == {}


# InvariantPool.


@settings(max_examples=8, deadline=None)
@given(random_spaces(max_leaves=3, max_rank=4, names="abcde"), st.integers(0, 2**31))
def test_pool_is_invariant_and_counts_right(axes, seed):
    spec = make_space(axes)
    keys = jax.random.split(jax.random.key(seed))
    x = random_features(spec, keys[0], 2)
    g = spec.random_permutation(keys[1])
    pool = jax.jit(lambda x: InvariantPool(spec).apply({}, x))
    y = pool(x)
    assert y.shape == (2 * sum(len(valid_partitions((), leaf)) for leaf in axes),)
    assert jnp.isfinite(y).all()
    assert_close(y, pool(spec.permute(g, x)))


def test_pool_has_all_invariants():
    spec = spec_of({"x": ("n", "n", "n"), "y": ("n", "m")}, n=3, m=2)
    with jax.enable_x64(True):
        zeros = {leaf.path: jnp.zeros((*leaf.shape, 1)) for leaf in spec.leaves}
        rows = jax.jit(jax.jacobian(lambda x: InvariantPool(spec).apply({}, x)))(zeros)
        rows = np.concatenate([np.reshape(rows[path], (6, -1)) for path in spec.paths], axis=1)
    assert rank(rows) == 6


def test_pool_of_a_matrix_is_its_mean_and_that_of_its_diagonal():
    spec = spec_of({"x": (None, "n", "n")}, n=4)
    x = random_features(spec, jax.random.key(0), 3)
    y = jax.jit(lambda x: InvariantPool(spec).apply({}, x))(x)
    # Channel by channel, each with its two positions.
    whole, diagonal = x["x"].mean((1, 2)).T.ravel(), jnp.einsum("piic->cp", x["x"]).ravel() / 4
    np.testing.assert_allclose(np.sort(y), np.sort(jnp.concatenate([whole, diagonal])), rtol=1e-5, atol=1e-6)


def test_pool_of_no_leaves():
    assert InvariantPool(make_spec({}, {})).apply({}, {}).shape == (0,)


# PositionalEncoding.

ATTENTION = {"qkv": ("in", (None, "heads", "size")), "recurrent": ("in", "in"), "scale": (), "norm": ("in",)}


@pytest.mark.parametrize("named", [("in",), ("heads",), ("size", "heads"), (None,), ("in", None)])
def test_encoding_breaks_exactly_the_named_symmetry(named):
    spec = spec_of(ATTENTION, heads=2, size=4, **{"in": 5})
    x = random_features(spec, jax.random.key(0), 2)
    both = both_orders(lambda x: PositionalEncoding(spec, named).apply({}, x), spec)
    kept = {name: jnp.arange(size) for name, size in spec.sizes.items()}
    for name, size in spec.sizes.items():
        g = {**kept, name: jnp.roll(jnp.arange(size), 1)}
        once, twice = both(g, x)
        for leaf in spec.leaves:
            same = np.array_equal(once[leaf.path], twice[leaf.path])
            assert same == (name not in named or name not in {other for other, _ in leaf.factors})


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(st.integers(1, 3), st.integers(0, 9), st.integers(3, 5))
def test_encoding_distinguishes_all_entries_along_named_axes(count, size, frequencies):
    spec = spec_of({"x": ("n",) * count + ("m",), "y": ()}, n=size, m=2)
    x = {leaf.path: jnp.zeros((*leaf.shape, 1)) for leaf in spec.leaves}
    y = jax.jit(PositionalEncoding(spec, ("n",), frequencies).apply)({}, x)
    codes = np.reshape(y["x"], (size**count, 2, y["x"].shape[-1]))
    np.testing.assert_array_equal(codes[:, 0], codes[:, 1])
    gaps = [np.abs(a - b).max() for a, b in itertools.combinations(codes[:, 0][:100], 2)]
    assert min(gaps, default=1) > 1e-2
    assert not y["y"].any()


def test_encoding_gives_every_leaf_the_same_number_of_channels():
    spec = spec_of(ATTENTION, heads=2, size=4)
    x = random_features(spec, jax.random.key(0), 2, jnp.bfloat16)
    y = jax.jit(PositionalEncoding(spec, ("in", "heads"), frequencies=3).apply)({}, x)
    for leaf in spec.leaves:
        assert y[leaf.path].shape == (*leaf.shape, 2 + 2 * 2 * 3)
        assert y[leaf.path].dtype == jnp.bfloat16
        np.testing.assert_array_equal(y[leaf.path][..., :2], x[leaf.path])
    assert not y["recurrent"][..., 8:].any()


def test_encoding_is_sines_and_cosines_of_octaves():
    spec = spec_of({"x": ("n",)}, n=5)
    y = jax.jit(PositionalEncoding(spec, ("n",), frequencies=2).apply)({}, {"x": jnp.zeros((5, 0))})
    t = np.pi * np.arange(5) / 4
    expected = np.stack([np.sin(t), np.cos(t), np.sin(2 * t), np.cos(2 * t)], axis=-1)
    np.testing.assert_allclose(y["x"], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("names", "frequencies", "message"),
    [
        (("out",), 4, r"'out' is not among \['m', 'n'\]"),
        ((None,), 4, "None is not among"),
        ("nm", 4, "must be a tuple of names, but is the string 'nm'"),
        (("n",), 2, "leaf 'x' .* has 3 axes 'n', and frequencies is 2"),
        (("m",), 0, "leaf 'b' .* has 1 axes 'm', and frequencies is 0"),
    ],
)
def test_encoding_checks_its_arguments_at_construction(names, frequencies, message):
    spec = spec_of({"b": ("m",), "x": ("n", "n", "n")})
    with pytest.raises(ValueError, match=message):
        PositionalEncoding(spec, names, frequencies)


def test_layers_after_the_encoding_commute_with_the_rest():
    spec = mlp([3, 4, 2])
    layer = Sequential([PositionalEncoding(spec, ("n0", "n2")), NFN(spec, 4), nf_relu, NFN(spec, 1)])
    x = random_features(spec, jax.random.key(0), 1)
    variables = random_variables(layer, x, seed=1)
    both = both_orders(lambda x: layer.apply(variables, x), spec)
    kept = {name: jnp.arange(size) for name, size in spec.sizes.items()}
    for name, size in spec.sizes.items():
        g = {**kept, name: jnp.roll(jnp.arange(size), 1)}
        once, twice = both(g, x)
        gap = max(float(jnp.abs(once[path] - twice[path]).max()) for path in spec.paths)
        assert (gap < 1e-3) == (name == "n1")


# DeepSets.


@pytest.mark.promotes("biases are added to rows")
@pytest.mark.parametrize("pool", [True, False])
@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("with_shared", [True, False])
def test_deep_sets_is_its_formula(pool, use_bias, with_shared):
    keys = jax.random.split(jax.random.key(0), 4)
    x = {"w": jax.random.normal(keys[0], (4, 3, 2)), "s": jax.random.normal(keys[1], (2,))}
    shared = jax.random.normal(keys[2], 5) if with_shared else None
    layer = DeepSets(6, pool, use_bias)
    variables = randomize(jax.eval_shape(layer.init, keys[3], x, shared), keys[3])
    params = variables["params"]
    assert set(params) == {"kernel"} | ({"pooled"} if pool else set()) | ({"bias"} if use_bias else set())
    y = jax.jit(layer.apply)(variables, x, shared)
    for path, leaf in x.items():
        expected = leaf @ params["kernel"][:2]
        if pool:
            expected += leaf.reshape(-1, 2).mean(0) @ params["pooled"]
        if with_shared:
            expected += shared @ params["kernel"][2:]
        if use_bias:
            expected += params["bias"]
        np.testing.assert_allclose(y[path], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pool", [True, False])
def test_deep_sets_commutes_with_every_permutation_of_the_entries_of_a_leaf(pool):
    keys = jax.random.split(jax.random.key(0), 3)
    x = {"w": jax.random.normal(keys[0], (4, 3, 2)), "b": jax.random.normal(keys[1], (3, 2))}
    order = jax.random.permutation(keys[2], 12)

    def permute(tree):
        return {**tree, "w": tree["w"].reshape(12, -1)[order].reshape(4, 3, -1)}

    layer = DeepSets(5, pool)
    variables = random_variables(layer, x, seed=1)
    apply = jax.jit(layer.apply)
    assert_close(permute(apply(variables, x)), apply(variables, permute(x)))


def test_deep_sets_of_an_empty_leaf_is_finite():
    y, _ = jax.jit(DeepSets(3).init_with_output)(jax.random.key(0), {"w": jnp.zeros((0, 4, 2)), "b": jnp.ones((4, 2))})
    assert y["w"].shape == (0, 4, 3)
    assert jnp.isfinite(y["b"]).all()


# Sequential and pointwise.


class Layer(NamedTuple):
    kernel: jax.Array
    bias: jax.Array


@pytest.mark.parametrize("kind", [lambda *leaves: leaves, Layer])
def test_sequential_passes_tuples_whole(kind):
    x = kind(jnp.ones((3, 2, 1)), jnp.ones((2, 1)))
    seen = []

    def watch(features):
        seen.append(features)
        return features

    network = Sequential([watch, DeepSets(4), nf_relu, watch, DeepSets(1)])
    y, variables = jax.jit(network.init_with_output)(jax.random.key(0), x)
    assert all(type(tree) is type(x) and len(tree) == 2 for tree in (*seen, y))
    assert [leaf.shape for leaf in y] == [(3, 2, 1), (2, 1)]
    assert len(variables["params"]) == 2
    assert_close(jax.jit(network.apply)(variables, x), y)


def test_sequential_of_nothing_is_the_identity():
    assert Sequential([]).apply({}, (1.0, 2.0)) == (1.0, 2.0)


def test_pointwise_acts_on_every_leaf():
    x = {"w": jnp.array([[-1.0, 2.0]]), "b": (jnp.array(-3.0),)}
    assert_close(jax.jit(pointwise(jnp.square))(x), {"w": jnp.array([[1.0, 4.0]]), "b": (jnp.array(9.0),)}, 0)
    assert_close(jax.jit(nf_relu)(x), {"w": jnp.array([[0.0, 2.0]]), "b": (jnp.array(0.0),)}, 0)


@pytest.mark.parametrize(
    "spec",
    [
        Inferred(lambda params: jnp.sum(params["w"]) ** 2),
        {"w": ("in", "out")},
        (("in", "out"),),
        "in",
        None,
        lambda params: {"w": ("in", "out")},
    ],
    ids=["inferred", "names", "tuples", "name", "none", "function"],
)
@pytest.mark.parametrize(
    "layer",
    [
        lambda spec: UNF(spec, 2),
        lambda spec: NFN(spec, 2),
        InvariantPool,
        InvariantPredictor,
        lambda spec: PositionalEncoding(spec, ("in",)),
    ],
    ids=["UNF", "NFN", "InvariantPool", "InvariantPredictor", "PositionalEncoding"],
)
def test_a_layer_says_how_a_spec_is_made(layer, spec):
    message = r"'s spec must be a PermutationSpec.*make_spec\(names, params\), infer_spec.*Inferred.*\.of\(params\)"
    with pytest.raises(TypeError, match=message):
        layer(spec)


def test_other_layers_say_how_they_are_applied_to_a_batch():
    spec = spec_of({"w": ("in", "out")})
    batch = {"w": jnp.ones((5, 3, 3, 1))}
    for layer in (NFN(spec, 2), InvariantPool(spec), PositionalEncoding(spec, ("in",))):
        with pytest.raises(ValueError, match=r"jax\.vmap\(layer\.apply, \(None, 0\)\)\(variables, features\)"):
            layer.init(jax.random.key(0), batch)
    # What they say works.
    assert jax.vmap(InvariantPool(spec).apply, (None, 0))({}, batch).shape[0] == 5


@pytest.mark.parametrize("shape", [(3, 2), (3, 2, 1), (5, 3, 2, 1), (5, 2, 3)])
def test_a_predictor_says_how_models_are_stacked(shape):
    predictor = InvariantPredictor(make_spec({"w": ("in", "out")}, {"w": jnp.zeros((3, 2))}), channels=2, depth=1)
    with pytest.raises(ValueError, match=r"leaf 'w' must have shape \('models', 3, 2\), .*stack_models\(\[params\]\)"):
        predictor.init(jax.random.key(0), {"w": jnp.ones(shape)})
