"""Operations that are sharded over devices, and those without a rule: nothing is lost in silence."""

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AbstractMesh, PartitionSpec

from optax_unf import check_spec, infer_spec

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
P = PartitionSpec


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


PARAMS = {"a": normal(3, 6), "b": normal(6, 2)}
X = normal(8, 3)


def axes_of(spec):
    return {leaf.path: leaf.axes for leaf in spec.leaves}


def mean_square(p, x):
    return jnp.mean((jnp.tanh(x @ p["a"]) @ p["b"]) ** 2)


def data_parallel(p, x):
    return lax.pmean(mean_square(p, x), "i")


def with_gradient(p, x):
    value, grads = jax.value_and_grad(lambda p: mean_square(p, x))(p)
    return lax.pmean(value, "i") + sum(jnp.sum(lax.psum(g, "i") ** 2) for g in grads.values())


def gathered(p, x):
    h = lax.all_gather(jnp.tanh(x @ p["a"]), "i", tiled=True)
    return lax.pmean(jnp.sum((h @ h.T) ** 2) + jnp.sum(lax.psum_scatter(h @ p["b"], "i", tiled=True) ** 2), "i")


def moved(p, x):
    h = jnp.tanh(x @ p["a"])
    return lax.psum(jnp.sum(h * lax.ppermute(h, "i", [(0, 1), (1, 0)])) * (1 + lax.axis_index("i")), "i")


@pytest.mark.parametrize("devices", [1, 2, 4])
@pytest.mark.parametrize("loss", [data_parallel, with_gradient, gathered])
def test_hidden_units_permute_on_all_devices(loss, devices):
    mesh = AbstractMesh((devices,), ("i",))
    fn = jax.shard_map(loss, mesh=mesh, in_specs=(P(), P("i")), out_specs=P(), check_vma=False)
    spec = infer_spec(fn, PARAMS, X, strict=True)
    assert axes_of(spec)["a"] == (None, spec.leaves[1].axes[0])
    assert 6 in spec.sizes.values()


def test_what_other_devices_have_moves_alike():
    fn = jax.shard_map(moved, mesh=AbstractMesh((2,), ("i",)), in_specs=(P(), P("i")), out_specs=P(), check_vma=False)
    assert list(infer_spec(fn, {"a": PARAMS["a"]}, X, strict=True).sizes.values()) == [6]


def test_units_that_are_sharded_permute_within_their_device():
    """In truth they permute on each device apart: the product of names is what a spec can say."""
    mesh = AbstractMesh((2,), ("i",))

    def loss(p, x):
        return lax.psum(jnp.tanh(x @ p["a"]) @ p["b"], "i")

    specs = ({"a": P(None, "i"), "b": P("i", None)}, P())
    spec = infer_spec(jax.shard_map(loss, mesh=mesh, in_specs=specs, out_specs=P()), PARAMS, X, strict=True)
    assert list(spec.sizes.values()) == [3]
    check_spec(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], spec, PARAMS, X, key=KEY)


def test_shards_are_whole_where_there_is_one_device():
    mesh = jax.make_mesh((1,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    fn = jax.shard_map(data_parallel, mesh=mesh, in_specs=(P(), P("i")), out_specs=P())
    spec = infer_spec(fn, PARAMS, X, strict=True)
    assert list(spec.sizes.values()) == [6, 2]
    check_spec(fn, spec, PARAMS, X, key=KEY)


def test_put_on_a_device_together():
    def fn(p, x):
        a, b = jax.device_put((p["a"], p["b"]))
        return jnp.tanh(x @ a) @ b

    spec = infer_spec(fn, PARAMS, X, strict=True)
    assert list(spec.sizes.values()) == [6]


def test_a_barrier_of_several_arrays():
    def fn(p, x):
        a, b = lax.optimization_barrier((p["a"], p["b"]))
        return jnp.tanh(x @ a) @ b

    assert list(infer_spec(fn, PARAMS, X, strict=True).sizes.values()) == [6]


# Operations without a rule.


def replaced(h):
    return jax.pure_callback(lambda: np.ones((8, 6), np.float32), jax.ShapeDtypeStruct((8, 6), jnp.float32))


@pytest.mark.parametrize(
    "change",
    [
        lambda h: eqx.error_if(h, jnp.any(jnp.isnan(h)), "not a number"),
        lambda h: lax.cond(jnp.sum(h) > 0, lambda h: h, replaced, h),
        lambda h: h + replaced(h),
        lambda h: jnp.where(replaced(h) > 0, h, 0.0),
    ],
    ids=["error_if", "branch", "added", "mask"],
)
def test_results_of_callbacks_are_not_silent(change):
    def fn(p, x):
        return change(jnp.tanh(x @ p["a"])) @ p["b"]

    with pytest.warns(UserWarning, match="no rule for the primitive 'pure_callback'") as record:
        spec = infer_spec(fn, PARAMS, X)
    assert len(record) == 1
    assert spec.sizes == {}
    with pytest.raises(NotImplementedError, match="pure_callback"):
        infer_spec(fn, PARAMS, X, strict=True)


def test_what_has_no_rule_but_is_computed_from_data_loses_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        spec = infer_spec(lambda p, x: jnp.abs(jnp.fft.fft(x)) @ p["a"] @ p["b"], PARAMS, X, strict=True)
    assert list(spec.sizes.values()) == [6]
