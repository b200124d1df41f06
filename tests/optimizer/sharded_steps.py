"""Updates of sharded parameters on 8 forced host devices. Run by test_sharding.py; prints what it found as JSON."""

import functools
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

from optax_unf import Architecture, Inferred, InitialScalars, check_spec, init_weights, make_spec, unf
from optax_unf.nominal import Eigenbases

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
    "both": (
        (4, 2),
        {"embed": P("x", "y"), "attention": P("x", "y"), "up": P("x", "y"), "bias": P("y"), "down": P("y", "x")},
    ),
}


def make_tree(seed):
    rng = np.random.default_rng(seed)
    sizes = SIZES | {("heads", "head"): SIZES["heads"] * SIZES["head"]}
    shapes = {path: tuple(sizes[axis] for axis in axes) for path, axes in AXES.items()}
    return {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}


PARAMS, GRADS = make_tree(0), make_tree(1)
SPEC = make_spec(AXES, PARAMS, sizes={"heads": SIZES["heads"]})


@functools.cache
def make(head):
    if head == "mixture":  # on the nominal term and the step of universal
        config = Architecture(head, hidden_channels=8, hidden_layers=1, nominal="orthogonalized", step="distance")
        return unf(init_weights(config, SPEC, jax.random.key(7), InitialScalars(beta=0.5)), spec=SPEC, total_steps=10)
    if head == "universal":
        return unf(spec=SPEC, total_steps=30)
    kind, coefficients = ("unf", head) if head in ("tied", "full") else (head, "full")
    preconditioner = "rms" if head == "tied" else None
    config = Architecture(kind, coefficients, 8, 1, preconditioner=preconditioner)
    return unf(init_weights(config, SPEC, jax.random.key(7), InitialScalars(beta=0.5)), spec=SPEC)


def mesh_of(shape, kind):
    return jax.make_mesh(shape, ("x", "y")[: len(shape)], axis_types=(kind,) * len(shape))


def largest_moved(text):
    """Entries of the largest array that one device gets from the others, reductions aside."""
    moved = re.findall(r"= \(?\w+\[([\d,]*)\]\S* (?:all-gather|all-to-all|collective-permute)(?:-start)?\(", text)
    return max((math.prod(int(n) for n in shape.split(",") if n) for shape in moved), default=0)


def difference(a, b, relative=False):
    # The sign of an eigenvector is any.
    a, b = (jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, Eigenbases)) for tree in (a, b))
    pairs = [(np.asarray(x), np.asarray(y)) for x, y in zip(a, b, strict=True) if not isinstance(x, Eigenbases)]
    return max(float(abs(x - y).max() / (max(abs(y).max(), 1) if relative else 1)) for x, y in pairs)


def stepper(tx):
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(step)


@functools.cache
def begun(head):
    """Parameters and state on one device to begin with."""
    params, state = PARAMS, make(head).init(PARAMS)
    if head == "universal":
        # After one gradient alone, eigenbases make it diagonal, and what rounding leaves beside the diagonal counts.
        step = stepper(make(head))
        for seed in range(2, 14):
            params, state = step(params, state, make_tree(seed))
    return jax.device_get((params, state))


def sharded(head, layout, kind, expected):
    shape, specs = LAYOUTS[layout]
    mesh = mesh_of(shape, kind)
    # How jax itself writes that a leaf is replicated, as it comes out of a step.
    replicated = {path: P(*[None] * len(axes)) if kind is AxisType.Explicit else P() for path, axes in AXES.items()}
    shardings = {path: NamedSharding(mesh, spec) for path, spec in (replicated | specs).items()}
    params, grads = jax.device_put(begun(head)[0], shardings), jax.device_put(GRADS, shardings)
    tx = make(head)
    state, step = tx.init(params), stepper(tx)
    if head == "universal":
        state = jax.device_put(begun(head)[1], jax.tree.map(lambda x: x.sharding, state))
    before = differently_sharded(params, state, shardings)
    outside = differently_sharded(*tx.update(grads, state, params), shardings) if head == "deepsets" else []
    text = step.lower(params, state, grads).compile().as_text()
    for _ in range(2):
        params, state = step(params, state, grads)
    return {
        "difference": difference((params, state), expected, relative=head == "universal"),
        "differently sharded": [before, differently_sharded(params, state, shardings)],
        "differently sharded outside of jit": outside,
        "replicated": [path for path in AXES if path not in specs],
        "programs": step._cache_size(),
        "moved": largest_moved(text),
    }


def differently_sharded(params, state, shardings):
    nodes = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, dict))
    # Eigenbases are not like the parameters: they are whole on every device.
    dicts = [x for x in nodes if isinstance(x, dict) and not any(isinstance(v, Eigenbases) for v in x.values())]
    trees = (params, *dicts)
    return sorted({p for t in trees for p, x in t.items() if not x.sharding.is_equivalent_to(shardings[p], x.ndim)})


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
    params, state = begun(head)
    for _ in range(2):
        params, state = step(params, state, parts)
    return {"difference": difference((params, state), expected, relative=head == "universal")}


def losses_of(mesh):
    """Losses that can be traced with arguments of these shardings only, or that ask for shardings within."""
    rows, both = NamedSharding(mesh, P("x")), NamedSharding(mesh, P("x", "y"))

    def mapped(params, x):
        x = jax.shard_map(lambda x: 2 * x, mesh=mesh, in_specs=P("x"), out_specs=P("x"))(x)
        return jnp.mean(jnp.tanh(x @ params["up"]) @ params["down"])

    def resharded(params, x):
        h = jax.sharding.reshard(jnp.tanh(x @ params["up"]), rows)
        return jnp.mean(jnp.square(jnp.einsum("bh,ho->bo", h, params["down"], out_sharding=rows)))

    def contracted(params, x):
        assert jax.typeof(x).sharding.spec == P("x", None), jax.typeof(x)
        h = jnp.tanh(jnp.einsum("bi,ih->bh", x, params["up"], out_sharding=both))
        return jnp.mean(jnp.einsum("bh,ho->bo", h, params["down"], out_sharding=rows))

    return [(mapped, P(), P()), (resharded, P(None, "y"), P()), (contracted, P(None, "y"), P("y", None))]


def inferred():
    """What `Inferred` makes of losses on an explicit mesh: axes, and whether they pass `check_spec`."""
    mesh, found = mesh_of((4, 2), AxisType.Explicit), {}
    x = jax.device_put(np.random.default_rng(2).normal(size=(8, 4)).astype(np.float32), NamedSharding(mesh, P("x")))
    for loss, *specs in losses_of(mesh):
        params = {"up": np.ones((4, 6), np.float32), "down": np.ones((6, 2), np.float32)}
        params = jax.device_put(params, {k: NamedSharding(mesh, s) for k, s in zip(params, specs, strict=True)})
        spec = Inferred(loss, x)
        tx = unf(init_weights(Architecture("deepsets", hidden_channels=4), SPEC, jax.random.key(7)), spec=spec)
        for name, update in {"jit": jax.jit(tx.update), "eager": tx.update}.items():
            updates, _ = update(jax.jit(jax.grad(loss))(params, x), tx.init(params), params)
            same = all(updates[path].sharding.is_equivalent_to(params[path].sharding, 2) for path in params)
            found[f"{loss.__name__} {name}"] = [[leaf.axes for leaf in spec.of(params).leaves], same]
        check_spec(loss, spec, params, x, key=jax.random.key(0), trials=1)
    return found


def gathered():
    """What `largest_moved` says about a program that gathers a leaf."""
    mesh = mesh_of((8,), AxisType.Auto)
    x = jax.device_put(PARAMS["embed"], NamedSharding(mesh, P("x")))
    return largest_moved(jax.jit(jnp.sin, out_shardings=NamedSharding(mesh, P())).lower(x).compile().as_text())


def main():
    found = {"gather": {"moved": gathered()}, "inferred": inferred()}
    for head in ("deepsets", "full", "tied", "mixture", "universal"):
        step = stepper(make(head))
        expected = step(*step(*begun(head), GRADS), GRADS)
        layout = "rows" if head == "deepsets" else "both"
        found[f"{head} {layout} auto"] = sharded(head, layout, AxisType.Auto, expected)
        if head in ("tied", "universal"):
            found[f"{head} both explicit"] = sharded(head, "both", AxisType.Explicit, expected)
            found[f"{head} shard_map"] = data_parallel(head, expected)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
