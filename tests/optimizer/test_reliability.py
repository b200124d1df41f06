"""Long runs, extreme numbers, odd shapes, and what a run leaves behind."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from spaces import randomize

from optax_unf import Architecture, init_weights, make_spec, unf

AXES = {"w": ("out", "in"), "b": ("out",)}
PARAMS = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
HEADS = ["none", "deepsets", "tied"]
PRETRAINED = {head: f"mlp-fashion-mnist-{name}" for head, name in zip(HEADS, ["sgdm", "deepsets", "tied"], strict=True)}


def make(head):
    return unf(PRETRAINED[head], spec=AXES)


def all_finite(tree):
    return all(np.isfinite(x).all() for x in jax.tree.leaves(tree))


# Curvatures over six orders of magnitude.
CURVATURE = {"w": jnp.array([[1.0, 1e-2], [1e-4, 1e-6]]), "b": jnp.array([1.0, 1e-3])}


def stiff(params, noise):
    del noise
    return jax.tree.map(jnp.multiply, CURVATURE, params)


def noisy(params, noise):
    return jax.tree.map(lambda x: x + 10.0 * jax.random.normal(noise, x.shape), params)


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("gradient", [stiff, noisy])
def test_a_hundred_thousand_steps(head, gradient):
    tx = make(head)

    def body(carry, noise):
        params, state = carry
        updates, state = tx.update(gradient(params, noise), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), jnp.stack([jnp.abs(x).max() for x in jax.tree.leaves(params)]).max()

    start = (PARAMS, tx.init(PARAMS))
    end, largest = jax.jit(lambda: jax.lax.scan(body, start, jax.random.split(jax.random.key(0), 100_000)))()
    assert all_finite(end)
    # Far from overflow all the way, and in the end: no slow drift.
    assert largest.max() < 100
    assert largest[-1000:].max() < 20
    assert end[1][0].count == 100_000
    types = jax.tree.map(lambda x: (x.shape, x.dtype), (start, end))
    assert types[0] == types[1]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_extreme_gradients(head, dtype):
    params = jax.tree.map(lambda x: x.astype(dtype), PARAMS)
    tx = make(head)
    update = jax.jit(tx.update)
    for size in (0.0, 1e-30, 1.0, 1e30):
        grads = jax.tree.map(lambda x, size=size: jnp.full_like(x, size), params)
        state = tx.init(params)
        for _ in range(20):
            updates, state = update(grads, state, params)
            assert all_finite((updates, state))
        if head != "none":
            # A constant gradient: every average goes to it.
            assert float(state[0].mu[1]["b"][0]) == pytest.approx(float(grads["b"][0]), rel=1e-5)
    if head == "none":
        # The nominal term alone is linear in the gradient.
        assert float(updates["b"][0]) < -1e28


@pytest.mark.parametrize("size", [1e-30, 1e30])
@pytest.mark.parametrize("head", HEADS)
def test_extreme_parameters(head, size):
    params = jax.tree.map(lambda x: size * x, PARAMS)
    tx = make(head)
    updates, state = jax.jit(tx.update)(PARAMS, tx.init(params), params)
    assert all_finite((updates, state))


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
def test_leaves_of_every_rank_and_of_size_zero_and_one(head):
    sizes = {"a": 2, "b": 3, "none": 0}
    names = {"scalar": (), "empty": ("none",), "no rows": ("none", "b"), "square": ("a", "a"), "cube": ("a", "b", "a")}
    for rank in (1, 4, 5, 6):
        own = {f"{rank}:{axis}": 1 + axis % 2 for axis in range(rank)}
        sizes |= own
        names[f"rank {rank}"] = tuple(own)
    rng = np.random.default_rng(0)
    params = {path: jnp.asarray(rng.normal(size=[sizes[a] for a in axes]), jnp.float32) for path, axes in names.items()}
    # Pretrained weights know the roles of an MLP only, and let the others contribute nothing.
    config = Architecture("unf" if head == "tied" else head, coefficients="tied", hidden_channels=4)
    shapes = jax.eval_shape(lambda key: init_weights(config, make_spec(names, params), key), jax.random.key(0))
    tx = unf(randomize(shapes, jax.random.key(1)), spec=names)
    update = jax.jit(tx.update)
    _, state = update(params, tx.init(params), params)
    updates, state = update(params, state, params)
    assert {path: x.shape for path, x in updates.items()} == {path: x.shape for path, x in params.items()}
    assert all_finite((updates, state))
    assert all((x != 0).all() for x in updates.values())


SCRIPT = """
import hashlib, json, sys
written = []
def watch(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        path, mode, flags = arguments
        if (mode and set(mode) & set("wax+")) or (flags and flags & 3):
            written.append(str(path))
    if event in ("os.mkdir", "os.rename", "os.remove", "shutil.copyfile"):
        written.append(event + str(arguments[0]))
sys.addaudithook(watch)
import jax, optax, numpy as np, optax_unf
params = {"w": jax.random.normal(jax.random.key(0), (20, 30)), "b": jax.random.normal(jax.random.key(1), (30,))}
axes = {"w": ("in", "out"), "b": ("out",)}
config, scalars = optax_unf.Architecture(coefficients="tied"), optax_unf.InitialScalars(beta=0.5)
weights = optax_unf.init_weights(config, optax_unf.make_spec(axes, params), jax.random.key(2), scalars)
digests = []
for tx in (optax_unf.unf(weights, spec=axes), optax_unf.unf("mlp-fashion-mnist-deepsets", spec=axes)):
    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.tree.map(jax.numpy.sin, params), state, params)
        return optax.apply_updates(params, updates), state
    carry = params, tx.init(params)
    for _ in range(20):
        carry = step(*carry)
    digests.append(hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(carry))).hexdigest())
json.dump({"digests": digests, "written": written}, sys.stdout)
"""


@pytest.mark.slow
def test_two_processes_agree_to_the_bit_and_write_nothing(tmp_path):
    runs = []
    for n in range(2):
        home, here = tmp_path / f"home_{n}", tmp_path / f"here_{n}"
        home.mkdir()
        here.mkdir()
        environment = os.environ | {
            "HOME": str(home),
            "TMPDIR": str(home),
            "XDG_CACHE_HOME": str(home),
            "PYTHONHASHSEED": str(n),
            "PYTHONDONTWRITEBYTECODE": "1",
            "CUDA_CACHE_DISABLE": "1",  # of NVIDIA's driver, in the home
            # A GPU's compiler otherwise takes the kernels that are fastest when it tries them.
            "XLA_FLAGS": os.environ["XLA_FLAGS"] + " --xla_gpu_deterministic_ops=true",
        }
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        run = subprocess.Popen([sys.executable, "-c", SCRIPT], cwd=here, env=environment, stdout=subprocess.PIPE)
        runs.append((run, home, here))
    results = []
    for run, home, here in runs:
        output, _ = run.communicate(timeout=300)
        assert run.returncode == 0
        results.append(json.loads(output))
        assert list(home.iterdir()) == list(here.iterdir()) == []
    assert results[0]["digests"] == results[1]["digests"]
    assert [path for result in results for path in result["written"] if path != os.devnull] == []
