"""Averages over time, and the step that Adam makes of them."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from optax_unf._dtypes import at_least_float32
from optax_unf.nominal.leaves import Leaves
from optax_unf.nominal.polar import positive, root


def average(old: Array, new: Array, decay: float | Float[Array, ""]) -> Array:
    """An exponential average, in the dtype of what is new."""
    decay = jnp.asarray(decay, new.dtype)
    return decay * old.astype(new.dtype) + (1 - decay) * new


def moments(
    grads: Leaves, mu: Leaves, nu: Leaves, momentum: float | Float[Array, ""], b2: float
) -> tuple[Leaves, Leaves, Leaves]:
    """The gradients, at least float32, and their averages and those of their squares.

    They are averages, so that none is larger than the gradients.
    """
    new = {path: jnp.asarray(g).astype(at_least_float32(jnp.result_type(g))) for path, g in grads.items()}
    mu = {path: average(m, new[path], momentum) for path, m in mu.items()}
    nu = {path: average(v, new[path] ** 2, b2) for path, v in nu.items()}
    return new, mu, nu


def unbiased(average: Array, count: Int[Array, ""], decay: float | Float[Array, ""]) -> Array:
    """An average over `count` numbers that began at zero, without the bias towards it."""
    return average / (1 - jnp.asarray(decay, average.dtype) ** count.astype(average.dtype))


def adam_steps(
    mu: Leaves, nu: Leaves, count: Int[Array, ""], momentum: float | Float[Array, ""], b2: float, eps: float
) -> Leaves:
    """The steps of the leaves that have second moments."""
    return {path: adam_step(unbiased(mu[path], count, momentum), unbiased(nu[path], count, b2), eps) for path in nu}


def adam_step(mu: Array, nu: Array, eps: float) -> Array:
    """A momentum over the root of second moments, epsilon being relative to their mean."""
    size = root(nu) + eps * root(jnp.mean(nu))
    return mu / positive(size)
