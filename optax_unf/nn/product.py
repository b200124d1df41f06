"""A matrix applied to the channels of every entry."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def product(kernel: Float[Array, "i o"], x: Float[Array, "i *axes"]) -> Float[Array, "o *axes"]:
    """The matrix applied to the channels of every entry, channels first."""
    kernel = kernel.astype(x.dtype)
    if x.ndim <= 2:
        return jnp.einsum("io,i...->o...", kernel, x)
    # Without the barrier, the CPU's compiler joins the transposition of the matrix's gradient to the product that makes
    # the gradient, and copies the entries in another order for it: that took four times as long.
    return jnp.einsum("oi,i...->o...", jax.lax.optimization_barrier(kernel.T), x)
