"""A small weight space of two layers, and numbers in it."""

import jax.numpy as jnp
import numpy as np

from optax_unf import make_spec

AXES = {"w": ("in", "hidden"), "b": ("hidden",), "v": ("hidden", "out")}
SHAPES = {"w": (3, 4), "b": (4,), "v": (4, 2)}


def numbers(seed):
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in SHAPES.items()}


SPEC = make_spec(AXES, numbers(0))
