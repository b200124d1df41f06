"""The schedule of a run."""

import jax.numpy as jnp
import optax
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


def over_run(factor: optax.ScalarOrSchedule, total_steps: ArrayLike | None, count: ArrayLike) -> Float[Array, ""]:
    """The factor, a number or a schedule, times the cosine of a run that says how long it is.

    Example:
      >>> float(over_run(0.5, None, 7)), float(over_run(0.5, 10, 10))
      (0.5, 0.0)
    """
    size = jnp.asarray(factor(count) if callable(factor) else factor, jnp.float32)
    return size if total_steps is None else size * cosine(total_steps, count)
