"""Large leaves in tiles: the same values as whole, whatever the shape and the size of the tiles."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from optax_unf import Architecture, Concat, MetaWeights, init_weights, make_spec, scale_by_unf
from optax_unf.equivariant.contract import Tensor, contract
from optax_unf.optimizer.features import mean_squares, scaled
from optax_unf.optimizer.stream import stream, tiles


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.integers(1, 40),
    st.permutations(range(4)),
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=4, max_size=4),
    st.integers(0, 3),
    st.sets(st.integers(1, 15)),
    st.integers(0, 2**31),
)
def test_a_leaf_in_tiles_is_the_leaf_whole(sizes, entries, names, around, apart, multiplied, seed):
    sizes, names = tuple(sizes), tuple(names[: len(sizes)])
    rng = np.random.default_rng(seed)
    leaf = Tensor("", names, sizes, sizes, (True,) * len(sizes))
    inputs = jnp.asarray(rng.normal(size=(3, *sizes)), jnp.float32)
    # The leaf as a part of a larger one, in which all axes but the first few are one.
    extent = (*sizes[:apart], math.prod(sizes[apart:])) if apart < len(sizes) else sizes
    around = around[: len(extent)]
    larger = jnp.pad(inputs.reshape(3, *extent), [(0, 0), *around], constant_values=np.nan)
    start = tuple(before for before, _ in around)
    first = jnp.asarray(rng.normal(size=(3, 5)), jnp.float32)
    kernels = {k: rng.normal(size=(5, 1 + k % 3)) for k in {0, *multiplied} if k < 2 ** len(sizes)}
    kernels = {k: jnp.asarray(kernel, jnp.float32) for k, kernel in kernels.items()}

    def trunk(x):
        return jnp.tanh(jnp.einsum("io,i...->o...", first, x))

    @jax.jit
    def both(inputs, larger):
        expected = contract(trunk(inputs), names)
        expected = [jnp.einsum("io,i...->o...", kernels[k], x) if k in kernels else x for k, x in enumerate(expected)]
        return expected, stream(list(larger), start, trunk, kernels, leaf, extent, entries)

    expected, found = both(inputs, larger)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), found, expected)


@pytest.mark.parametrize("known", [None, (0.5, 0.25)])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_mean_squares_of_a_large_leaf(known, dtype):
    rng = np.random.default_rng(0)
    channels = [(rng.normal(size=(70, 99)) * scale).astype(dtype) for scale in (1.0, 1e-3, 10.0)]
    expected = [np.mean(np.square(x, dtype=np.float64)) for x in channels]
    if known is not None:
        expected[1:] = known
    known = None if known is None else jnp.asarray(known, jnp.float32)
    found = mean_squares(list(map(jnp.asarray, channels)), known, jnp.float32)
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-5)


def test_mean_squares_too_large_for_float32():
    sizes = [1e16, 1e20, 1e30, np.inf, np.nan]
    found = mean_squares([jnp.full((70, 99), size, jnp.float32) for size in sizes], None, jnp.float32)
    np.testing.assert_allclose(found[:, 0], [1e30, 1e30, 1e30, 1e30, np.nan])
    for x, square in zip(sizes[:3], found, strict=False):
        np.testing.assert_allclose(scaled(jnp.full(1, x, jnp.float32), square), 1.0, rtol=1e-5)


AXES = {
    "embedding": ("vocabulary", "model"),
    "query": ("model", "heads", "size"),
    "key": ("model", "heads", "size"),
    "recurrent": ("model", "model"),
    "fused": ("model", Concat(("heads", "size"), ("heads", "size"), "hidden")),
    "up": ("model", "hidden"),
    "down": ("hidden", "model"),
    "bias": ("model",),
    "scale": (),
}
SIZES = {"vocabulary": 31, "model": 12, "heads": 2, "size": 5, "hidden": 18}
PARAMS = {path: np.zeros([SIZES.get(name, 38) for name in axes], np.float32) for path, axes in AXES.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        Architecture(hidden_channels=8, hidden_layers=2),
        Architecture(coefficients="tied", hidden_channels=8, hidden_layers=2),
        Architecture(head="deepsets", hidden_channels=8, hidden_layers=2),
        Architecture(preconditioner="rms", hidden_channels=8, hidden_layers=2),
    ],
    ids=["full", "tied", "deepsets", "preconditioned"],
)
@pytest.mark.parametrize("entries", [13])
def test_an_update_in_tiles_is_the_update_whole(config, entries):
    rng = np.random.default_rng(0)
    spec = make_spec(AXES, PARAMS)
    weights = init_weights(config, spec, jax.random.key(0))
    theta = jax.tree.map(lambda x: x + jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype), weights.theta)
    weights = MetaWeights(theta, weights.architecture, weights.spec)
    params, grads = (jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), PARAMS) for _ in range(2))

    @jax.jit
    def both(params, grads):
        results = []
        for tile_entries in (0, entries):
            tx = scale_by_unf(weights, spec=spec, tile_entries=tile_entries)
            results.append(tx.update(grads, tx.init(params), params))
        return results

    whole, tiled = both(params, grads)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-5), tiled, whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        Architecture(coefficients="tied", hidden_channels=4, hidden_layers=1),
        Architecture(head="deepsets", hidden_channels=4, hidden_layers=1),
    ],
    ids=["tied", "deepsets"],
)
@pytest.mark.parametrize("local", ["params and gradients", "gradients", "weights"])
def test_tiles_under_shard_map(config, local):
    """Parameters, gradients or meta-weights of its own for each device, of which one is enough for their types."""
    names = {"w": ("in", "out"), "b": ("out",)}
    rng = np.random.default_rng(0)
    params, grads = ({"w": jnp.float32(rng.normal(size=(9, 7))), "b": jnp.float32(rng.normal(size=7))} for _ in "ab")
    weights = init_weights(config, make_spec(names, params), jax.random.key(0))

    def update(params, grads, theta):
        tx = scale_by_unf(MetaWeights(theta, weights.architecture, weights.spec), spec=names, tile_entries=20)
        return tx.update(grads, tx.init(params), params)[0]

    args = params, grads, weights.theta
    specs = tuple(P("x") if name in local else P() for name in ("params", "gradients", "weights"))

    def per_device(*args):
        args = (jax.tree.map(lambda x: x[0], arg) if spec else arg for arg, spec in zip(args, specs, strict=True))
        return jax.tree.map(lambda x: x[None], update(*args))

    mesh = jax.make_mesh((1,), ("x",), axis_types=(AxisType.Auto,))
    stacked = (jax.tree.map(lambda x: x[None], arg) if spec else arg for arg, spec in zip(args, specs, strict=True))
    found = jax.jit(jax.shard_map(per_device, mesh=mesh, in_specs=specs, out_specs=P("x")))(*stacked)
    expected = jax.tree.map(lambda x: x[None], jax.jit(update)(*args))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), found, expected)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=4), st.integers(1, 300))
def test_tiles_cover_a_leaf_and_are_as_small_as_wanted(sizes, entries):
    cut = tiles(tuple(sizes), entries)
    before, size, after = cut.view
    assert before * size * after == np.prod(sizes)
    assert cut.length * after <= max(entries, after)
    begins = np.minimum(np.arange(cut.per_axis) * cut.length, size - cut.length)
    covered = begins[:, None] + np.arange(cut.length)
    assert set(covered.ravel()) == set(range(size))


def test_tiles_do_not_overlap_where_somewhat_smaller_ones_fit():
    assert tiles((768, 3072), 2**14).length == 4
    assert tiles((50257, 768), 2**14).length == 21


@pytest.mark.xla
@pytest.mark.parametrize(
    ("axes", "sizes"),
    [
        ({"w": ("a", "b")}, {"a": 2048, "b": 2048}),
        # The features of this kernel's means over all places are larger than the kernel.
        ({"w": ("i", "o", "x", "y"), "v": ("i", "o")}, {"i": 512, "o": 512, "x": 3, "y": 3}),
    ],
)
def test_tiles_never_hold_the_features_of_a_leaf(axes, sizes):
    sizes = {path: tuple(map(sizes.__getitem__, names)) for path, names in axes.items()}
    shape = {path: jax.ShapeDtypeStruct(size, jnp.float32) for path, size in sizes.items()}
    spec = make_spec(axes, shape)
    weights = init_weights(Architecture(), spec, jax.random.key(0))

    def temporary_bytes(tile_entries):
        tx = scale_by_unf(weights, spec=spec, tile_entries=tile_entries)

        def step(params, state, grads):
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        state = jax.eval_shape(tx.init, shape)
        return (
            jax.jit(step, donate_argnums=(0, 1))
            .lower(shape, state, shape)
            .compile()
            .memory_analysis()
            .temp_size_in_bytes
        )

    leaf = 4 * math.prod(sizes["w"])
    assert temporary_bytes(0) > 32 * leaf
    assert temporary_bytes(4096) < 3 * leaf


def test_leaves_that_differ_in_names_alone_are_traced_once():
    params = {name: jnp.ones((40, 30)) for name in ("v", "w")}
    spec = make_spec({"v": ("a", "b"), "w": ("d", "c")}, params)
    tx = scale_by_unf(init_weights(Architecture(), spec, jax.random.key(0)), spec=spec, tile_entries=100)
    jaxpr = jax.make_jaxpr(tx.update)(params, tx.init(params), params).jaxpr
    v, w = (eqn.params["jaxpr"] for eqn in _equations(jaxpr) if eqn.params.get("name") == "stream")
    assert v is w


def _equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in eqn.params.values():
            if hasattr(inner, "jaxpr"):
                yield from _equations(inner.jaxpr)


def test_the_size_of_blocks_is_static():
    weights = init_weights(Architecture(head="deepsets"), make_spec(None, {"w": np.zeros(3)}), jax.random.key(0))
    injected = optax.inject_hyperparams(scale_by_unf)
    params = {"w": jnp.ones(3)}
    with pytest.raises(TypeError, match="static_args"):
        jax.jit(injected(weights, tile_entries=64).init)(params)
    tx = optax.inject_hyperparams(scale_by_unf, static_args=("tile_entries",))(weights, tile_entries=64)
    tx.update(params, tx.init(params), params)
