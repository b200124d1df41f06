"""Large leaves in blocks: the same values as whole, whatever the shape and the size of the blocks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optax_unf import Concat, MetaWeights, OptimizerConfig, init_weights, make_spec, scale_by_unf
from optax_unf.contract import Tensor, contract
from optax_unf.stream import advance, stream


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.integers(1, 40),
    st.permutations(range(4)),
    st.integers(0, 2**31),
)
def test_a_leaf_in_blocks_is_the_leaf_whole(sizes, entries, names, seed):
    sizes, names = tuple(sizes), tuple(names[: len(sizes)])
    rng = np.random.default_rng(seed)
    leaf = Tensor("", names, sizes, sizes, (True,) * len(sizes))
    inputs = jnp.asarray(rng.normal(size=(3, *sizes)), jnp.float32)
    first, whole = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((3, 5), (5, 2)))

    def trunk(x):
        return jnp.tanh(jnp.einsum("io,i...->o...", first, x))

    @jax.jit
    def both(inputs):
        expected, *means = contract(trunk(inputs), names)
        products, found = stream(list(inputs), trunk, whole, leaf, entries)
        return (jnp.einsum("io,i...->o...", whole, expected), means), (products, found)

    expected, found = both(inputs)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), found, expected)


@pytest.mark.parametrize("known", [None, (1.0, 0.5, 0.25)])
@pytest.mark.parametrize("shape", [(70, 99), (2048,), (3,), (5000,)])
def test_momenta_and_mean_squares_row_by_row(shape, known):
    rng = np.random.default_rng(0)
    param, grad, *momenta = (rng.normal(size=shape) * scale for scale in (1.0, 1e-3, 1e20, 1.0, 10.0))
    decays = np.array([0.9, 0.1, 0.999])
    expected = [decay * m + (1 - decay) * grad for decay, m in zip(decays, momenta, strict=True)]
    squares = [np.mean(np.clip(x, -1e15, 1e15) ** 2) for x in (param, grad, *expected[1:])]
    if known is not None:
        squares[1:] = known
    single = functools.partial(jnp.asarray, dtype=jnp.float32)
    known = None if known is None else single(known)
    new, found = jax.jit(advance)(single(param), single(grad), list(map(single, momenta)), single(decays), known)
    for a, b in zip(new, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    np.testing.assert_allclose(found[:, 0], squares, rtol=1e-5)


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


@pytest.mark.parametrize(
    "config",
    [
        OptimizerConfig(hidden_channels=8, hidden_layers=2, beta=1.0),
        OptimizerConfig(coefficients="tied", hidden_channels=8, hidden_layers=2, beta=1.0),
        OptimizerConfig(head="deepsets", hidden_channels=8, hidden_layers=2, beta=1.0),
        OptimizerConfig(normalization="entry", hidden_channels=8, hidden_layers=2, beta=1.0),
    ],
    ids=["full", "tied", "deepsets", "entry"],
)
@pytest.mark.parametrize("entries", [13])
def test_an_update_in_blocks_is_the_update_whole(config, entries):
    rng = np.random.default_rng(0)
    spec = make_spec(AXES, PARAMS)
    weights = init_weights(config, spec, jax.random.key(0))
    theta = jax.tree.map(lambda x: x + jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype), weights.theta)
    weights = MetaWeights(theta, weights.config, weights.spec)
    params, grads = (jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), PARAMS) for _ in range(2))

    @jax.jit
    def both(params, grads):
        results = []
        for block_entries in (0, entries):
            tx = scale_by_unf(weights, spec=spec, block_entries=block_entries)
            results.append(tx.update(grads, tx.init(params), params))
        return results

    whole, blocks = both(params, grads)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-5), blocks, whole)


def test_blocks_never_hold_the_features_of_a_leaf():
    spec = make_spec({"w": ("a", "b")}, {"w": np.zeros((512, 1024), np.float32)})
    weights = init_weights(OptimizerConfig(), spec, jax.random.key(0))
    shape = {"w": jax.ShapeDtypeStruct((512, 1024), jnp.float32)}

    def temporary_bytes(block_entries):
        tx = scale_by_unf(weights, spec=spec, block_entries=block_entries)

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

    leaf = 512 * 1024 * 4
    assert temporary_bytes(0) > 32 * leaf
    assert temporary_bytes(4096) < 3 * leaf


def test_the_size_of_blocks_is_static():
    weights = init_weights(OptimizerConfig(head="deepsets"), make_spec(None, {"w": np.zeros(3)}), jax.random.key(0))
    injected = optax.inject_hyperparams(scale_by_unf)
    params = {"w": jnp.ones(3)}
    with pytest.raises(TypeError, match="static_args"):
        jax.jit(injected(weights, block_entries=64).init)(params)
    tx = optax.inject_hyperparams(scale_by_unf, static_args=("block_entries",))(weights, block_entries=64)
    tx.update(params, tx.init(params), params)
