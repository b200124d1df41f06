"""Sharded parameters: the same numbers, shardings kept, nothing gathered. The steps are those of sharded_steps.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from optax_unf import unf

pytestmark = pytest.mark.slow

CASES = ["deepsets rows auto", "full both auto", "tied both auto", "tied both explicit"]
# Products of a matrix with itself, again and again: it has to travel, and rounding grows.
PRODUCTS = ["mixture both auto", "universal both auto", "universal both explicit"]


@pytest.fixture(scope="module")
def found():
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    script = Path(__file__).with_name("sharded_steps.py")
    done = subprocess.run([sys.executable, "-W", "error", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("case", [*CASES, "tied shard_map"])
def test_steps_are_those_of_one_device(found, case):
    assert found[case]["difference"] < 2e-6


@pytest.mark.parametrize("case", [*PRODUCTS, "universal shard_map"])
def test_steps_by_products_of_matrices_are_those_of_one_device(found, case):
    assert found[case]["difference"] < 2e-5


@pytest.mark.parametrize("case", [*CASES, *PRODUCTS])
def test_the_state_is_sharded_like_the_parameters(found, case):
    at_init, after = found[case]["differently sharded"]
    assert at_init == []
    if "auto" not in case:
        assert after == []
    # Under automatic sharding, jax may shard results that were replicated arguments, unless out_shardings say not to.
    assert set(after) <= set(found[case]["replicated"])


def test_outside_of_jit_all_leaves_keep_their_shardings(found):
    assert found["deepsets rows auto"]["differently sharded outside of jit"] == []


@pytest.mark.parametrize("case", ["deepsets rows auto", "tied both explicit"])
def test_a_second_step_is_not_compiled_anew(found, case):
    assert found[case]["programs"] == 1


def test_an_explicit_mesh_of_one_device():
    mesh = jax.make_mesh((1,), ("x",), axis_types=(AxisType.Explicit,))
    params = {"w": jnp.ones((6, 4)), "b": jnp.ones(4)}
    shardings = {"w": NamedSharding(mesh, P("x", None)), "b": NamedSharding(mesh, P(None))}
    tx = unf("mlp-fashion-mnist-tied", spec={"w": ("in", "out"), "b": ("out",)})
    placed = jax.device_put(params, shardings)
    with jax.set_mesh(mesh):
        updates, state = jax.jit(tx.update)(placed, tx.init(placed), placed)
    expected, _ = jax.jit(tx.update)(params, tx.init(params), params)
    for path, x in updates.items():
        assert x.sharding == state[0].mu[0][path].sharding == shardings[path]
        np.testing.assert_allclose(x, expected[path], rtol=1e-5)


@pytest.mark.parametrize("loss", ["mapped", "resharded", "contracted"])
@pytest.mark.parametrize("how", ["jit", "eager"])
def test_specs_are_inferred_on_an_explicit_mesh(found, loss, how):
    (down, up), same_sharding = found["inferred"][f"{loss} {how}"]
    assert down == ["down:0", "down:1"]
    assert up[1] == "down:0"
    assert same_sharding


@pytest.mark.parametrize("case", CASES)
def test_no_leaf_is_gathered(found, case):
    assert found["gather"]["moved"] == 256 * 128
    # Only averages over all axes but one travel, and 8 channels of the vectors, which go through the trunk together: a
    # 16th of the smallest matrix.
    assert found[case]["moved"] <= 1024
