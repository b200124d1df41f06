"""Milliseconds of an update outside of `jax.jit`, beside Adam's: medians of alternating steps.

Run: python benchmarks/eager.py
"""

import statistics
import time

import jax
import jax.numpy as jnp
import optax

import optax_unf

AXES = {"w1": ("in", "hidden"), "b1": ("hidden",), "w2": ("hidden", "out")}
PARAMS = {"w1": jnp.ones((4, 6)), "b1": jnp.ones(6), "w2": jnp.ones((6, 3))}
OPTIMIZERS = {
    "adam": optax.adam(1e-3),
    "sgdm": optax_unf.unf("mlp-fashion-mnist-sgdm", spec=AXES),
    "deepsets": optax_unf.unf("mlp-fashion-mnist-deepsets", spec=AXES),
    "tied": optax_unf.unf("mlp-fashion-mnist-tied", spec=AXES),
    "tied, preconditioned": optax_unf.unf("transformer-lm1b-small-rms-tied", spec=AXES),
}
STEPS, WARM_UP = 60, 5


def main() -> None:
    """Prints a line per optimizer."""
    grads = jax.tree.map(lambda x: 0.1 * x, PARAMS)
    states = {name: tx.init(PARAMS) for name, tx in OPTIMIZERS.items()}
    times = {name: [] for name in OPTIMIZERS}
    for _ in range(STEPS + WARM_UP):
        for name, tx in OPTIMIZERS.items():
            start = time.perf_counter()
            _, states[name] = jax.block_until_ready(tx.update(grads, states[name], PARAMS))
            times[name].append(1e3 * (time.perf_counter() - start))
    for name, found in times.items():
        print(f"{name:15} {statistics.median(found[WARM_UP:]):6.2f} ms")


if __name__ == "__main__":
    main()
