"""The schedule of a run."""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float


def cosine(total_steps: ArrayLike, count: ArrayLike) -> Float[Array, ""]:
    """From 1 to 0 over a run, and 0 after it. Unlike `optax.cosine_decay_schedule`, it takes a traced number of steps.

    Example:
      >>> float(cosine(10, 0)), float(cosine(10, 10)), float(cosine(10, 20))
      (1.0, 0.0, 0.0)
    """
    fraction = jnp.minimum(jnp.asarray(count, jnp.float32) / jnp.asarray(total_steps, jnp.float32), 1.0)
    return (1.0 + jnp.cos(jnp.pi * fraction)) / 2.0
