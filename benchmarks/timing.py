"""How the benchmarks measure: whole steps, warm, medians, and the matrix-multiply rate beside them."""

import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_unf import Architecture, init_weights, unf


def learned(spec, coefficients: Any = "full", preconditioner: Any = None, tile_entries: int | None = None):
    """A learned optimizer with a UNF head; its weights have not been trained, which does not matter for time."""
    config = Architecture(coefficients=coefficients, preconditioner=preconditioner)
    shapes = jax.eval_shape(lambda key: init_weights(config, spec, key), jax.random.key(0))
    rng = np.random.default_rng(0)
    weights = jax.tree.map(lambda x: jnp.asarray(0.1 * rng.normal(size=x.shape), x.dtype), shapes)
    return unf(weights, spec=spec, tile_entries=tile_entries)


def compiled_step(optimizer, shapes):
    """One training step without its gradient, compiled: from parameters, state and gradients to the first two."""

    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = jax.eval_shape(optimizer.init, shapes)
    start = time.perf_counter()
    lowered = jax.jit(step, donate_argnums=(0, 1)).lower(shapes, state, shapes)
    traced = time.perf_counter()
    compiled = lowered.compile()
    return compiled, traced - start, time.perf_counter() - traced


class Runner:
    """Repeats a compiled step on arrays of its own."""

    def __init__(self, optimizer, shapes):
        self.step, self.trace_seconds, self.compile_seconds = compiled_step(optimizer, shapes)
        fill = lambda value: jax.tree.map(lambda x: jnp.full(x.shape, value, x.dtype), shapes)  # noqa: E731
        self.params, self.grads = fill(0.02), fill(0.01)
        self.state = optimizer.init(self.params)

    def __call__(self, repeat=1):
        start = time.perf_counter()
        for _ in range(repeat):
            self.params, self.state = self.step(self.params, self.state, self.grads)
        jax.block_until_ready((self.params, self.state))
        return (time.perf_counter() - start) / repeat


def matmul_rate(seconds=0.2):
    """Floating-point operations a second of a product of 1024 x 1024 matrices."""
    x = jnp.ones((1024, 1024))
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(x, x))
    times = []
    while sum(times) < seconds:
        start = time.perf_counter()
        jax.block_until_ready(product(x, x))
        times.append(time.perf_counter() - start)
    return 2 * 1024**3 / float(np.median(times))


def floating_point_work(spec):
    """Operations of one update: trunk, products of single entries, sums along axes, momenta, normalization.

    Per entry: 2 (8 x 32 + 2 x 32 x 32) in the trunk, 2 x 32 for what the head makes of the entry, 32 additions for
    each axis, 3 for each momentum and each channel's square and scale.
    """
    return sum(
        math.prod(leaf.shape) * (2 * (8 * 32 + 2 * 32 * 32) + 64 + 32 * len(leaf.shape) + 3 * 7 + 3 * 8)
        for leaf in spec.leaves
    )


def entries(spec):
    """The number of parameters."""
    return sum(math.prod(leaf.shape) for leaf in spec.leaves)
