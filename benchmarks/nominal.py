"""Time of an update over that of `optax.contrib.muon`: `python benchmarks/nominal.py [--gpt2]`.

Also seconds of compilation, and entries of the state over those of the parameters. Medians in one process, the
optimizers taking turns of ten updates, in one of which `unf` turns its bases.
"""

import argparse
import itertools
import statistics
import time

import jax
import jax.numpy as jnp
import optax

import optax_unf


def mlp(width):
    sizes = [64, *[width] * 5, 10]
    return {
        f"layer_{k}": {"kernel": jnp.ones((a, b)), "bias": jnp.ones(b)}
        for k, (a, b) in enumerate(itertools.pairwise(sizes))
    }


def gpt2(width=768, layers=12, tokens=50_257):
    block = {
        "qkv": {"kernel": jnp.ones((width, 3 * width)), "bias": jnp.ones(3 * width)},
        "proj": {"kernel": jnp.ones((width, width)), "bias": jnp.ones(width)},
        "up": {"kernel": jnp.ones((width, 4 * width)), "bias": jnp.ones(4 * width)},
        "down": {"kernel": jnp.ones((4 * width, width)), "bias": jnp.ones(width)},
    }
    tables = {"wte": jnp.ones(tokens * width), "wpe": jnp.ones(1024 * width)}  # flat: Adam's, for both
    return tables | {f"block_{k}": block for k in range(layers)}


def size(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


def measure(params, repeats):
    optimizers = {
        "optax.contrib.muon": optax.contrib.muon(1e-3, consistent_rms=0.2),
        "optax.adam": optax.adam(1e-3),
        "orthogonal, not grafted": optax_unf.orthogonal(1e-3, graft=False),
        "orthogonal, grafted": optax_unf.orthogonal(1e-3),
        "orthogonal_prodigy": optax_unf.orthogonal_prodigy(total_steps=1000),
        "unf": optax_unf.unf(total_steps=1000),
    }
    keys = jax.random.split(jax.random.key(0), len(jax.tree.leaves(params)))
    grads = jax.tree.map(
        lambda x, k: jax.random.normal(k, x.shape), params, jax.tree.unflatten(jax.tree.structure(params), list(keys))
    )
    runs, compiled = {}, {}
    for name, optimizer in optimizers.items():
        state = jax.jit(optimizer.init)(params)
        start = time.perf_counter()
        update = jax.jit(optimizer.update).lower(grads, state, params).compile()
        compiled[name] = time.perf_counter() - start, size(state) / size(params)
        for _ in range(11):  # the first ten decompose
            state = jax.block_until_ready(update(grads, state, params))[1]
        runs[name] = update, state

    times = {name: [] for name in runs}
    for _ in range(repeats):
        for name, (update, state) in tuple(runs.items()):
            start = time.perf_counter()
            for _ in range(10):
                _, state = update(grads, state, params)
            jax.block_until_ready(state)
            runs[name] = update, state
            times[name].append((time.perf_counter() - start) / 10)

    medians = {name: statistics.median(found) for name, found in times.items()}
    for name, median in medians.items():
        seconds, arrays = compiled[name]
        ratio = median / medians["optax.contrib.muon"]
        print(f"{name:<24} {1e3 * median:10.2f} ms  {ratio:.2f}  compiled in {seconds:.1f} s  state {arrays:.1f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpt2", action="store_true", help="also a tree of the size of GPT-2 small")
    parser.add_argument("--repeats", type=int, default=20)
    arguments = parser.parse_args()
    for width in (64, 256, 512):
        print(f"perceptron of twelve leaves, width {width}")
        measure(mlp(width), arguments.repeats)
    if arguments.gpt2:
        print("GPT-2 small")
        measure(gpt2(), 1)
