"""Updates of sharded parameters on 8 forced host devices. Run by test_sharding.py; prints what it found as JSON."""

import json
import math
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from optax_unf import OptimizerConfig, init_weights, make_spec, unf

AXES = {
    "embed": ("vocabulary", "model"),
    "attention": ("model", ("heads", "head")),
    "up": ("model", "hidden"),
    "bias": ("hidden",),
    "down": ("hidden", "model"),
    "scale": ("model",),
    "temperature": (),
}
SIZES = {"vocabulary": 256, "model": 128, "hidden": 256, "heads": 8, "head": 16}
# Name of the layout: shape of the mesh, and how each leaf is sharded; other leaves are replicated.
LAYOUTS = {
    "rows": ((8,), dict.fromkeys(("embed", "attention", "up", "bias", "down", "scale"), P("x"))),
    "columns": ((8,), dict.fromkeys(("embed", "attention", "up", "down"), P(None, "x")) | {"scale": P("x")}),
    "megatron": (
        (8,),
        {"embed": P("x"), "attention": P(None, "x"), "up": P(None, "x"), "bias": P("x"), "down": P("x")},
    ),
    "both": (
        (4, 2),
        {"embed": P("x", "y"), "attention": P("x", "y"), "up": P("x", "y"), "bias": P("y"), "down": P("y", "x")},
    ),
}


def make_params(seed):
    rng = np.random.default_rng(seed)
    shapes = {path: tuple(math.prod(SIZES[n] for n in ((a,) if isinstance(a, str) else a)) for a in axes)
              for path, axes in AXES.items()}
    return {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}


PARAMS, GRADS = make_params(0), make_params(1)
SPEC = make_spec(AXES, PARAMS, sizes={"heads": SIZES["heads"]})


def make(head):
    kind, coefficients = ("unf", head) if head in ("tied", "full") else (head, "full")
    config = OptimizerConfig(head=kind, coefficients=coefficients, hidden_channels=8, hidden_layers=1, beta=0.5)
    return unf(init_weights(config, SPEC, jax.random.key(7)), spec=SPEC)


def mesh_of(shape, kind):
    return jax.make_mesh(shape, ("x", "y")[: len(shape)], axis_types=(kind,) * len(shape))


def largest_moved(text):
    """Entries of the largest array that one device gets from the others, reductions aside."""
    moved = re.findall(r"= \(?\w+\[([\d,]*)\]\S* (?:all-gather|all-to-all|collective-permute)(?:-start)?\(", text)
    return max((math.prod(int(n) for n in shape.split(",") if n) for shape in moved), default=0)


def difference(a, b):
    return max(float(abs(np.asarray(x) - np.asarray(y)).max()) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def stepper(tx, traces):
    def step(params, state, grads):
        traces.append(1)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def sharded(head, layout, kind, expected):
    shape, specs = LAYOUTS[layout]
    mesh = mesh_of(shape, kind)
    shardings = {path: NamedSharding(mesh, specs.get(path, P())) for path in AXES}
    params, grads = jax.device_put(PARAMS, shardings), jax.device_put(GRADS, shardings)
    tx, traces = make(head), []
    step = jax.jit(stepper(tx, traces), donate_argnums=(0, 1))
    state = tx.init(params)
    momenta_start = alike(state[0].momenta, shardings)
    text = step.lower(params, state, grads).compile().as_text()
    params, state = step(params, state, grads)
    momenta_after = alike(state[0].momenta, shardings)
    params, state = step(params, state, grads)
    return {
        "difference": difference((params, state), expected),
        "momenta": [momenta_start, momenta_after, alike(state[0].momenta, shardings)],
        "params": alike([params], shardings),
        "moved": largest_moved(text),
        "traces": len(traces),
    }


def alike(trees, shardings):
    return all(x.sharding.is_equivalent_to(shardings[path], x.ndim) for tree in trees for path, x in tree.items())


def data_parallel(head, expected):
    """`shard_map` over gradients of parts of a batch, parameters replicated."""
    mesh = mesh_of((8,), AxisType.Auto)
    tx = make(head)

    def step(params, state, grads):
        grads = jax.tree.map(lambda g: jax.lax.pmean(g[0], "x"), grads)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    step = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(P(), P(), P("x")), out_specs=P()))
    weights = np.arange(8.0) / 3.5
    parts = jax.tree.map(lambda g: jnp.stack([jnp.float32(w) * g for w in weights]), GRADS)
    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(2):
        params, state = step(params, state, parts)
    return {"difference": difference((params, state), expected)}


def main():
    found = {}
    for head in ("none", "deepsets", "tied", "full"):
        tx = make(head)
        step = jax.jit(stepper(tx, []))
        expected = step(*step(PARAMS, tx.init(PARAMS), GRADS), GRADS)
        for layout in LAYOUTS:
            found[f"{head} {layout} auto"] = sharded(head, layout, AxisType.Auto, expected)
        found[f"{head} shard_map"] = data_parallel(head, expected)
        if head == "tied":
            for layout in LAYOUTS:
                found[f"{head} {layout} explicit"] = sharded(head, layout, AxisType.Explicit, expected)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
