"""A matrix applied to the channels of every entry, and channels side by side for it."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def product(kernel: Float[Array, "i o"], x: Float[Array, "i *axes"], *, widen: bool = False) -> Float[Array, "o *axes"]:
    """The matrix applied to the channels of every entry, channels first.

    With `widen` a matrix of one column gets a second one, of zeros: the CPU's compiler makes code of its own for every
    product with a vector, which takes several times as long to compile as a call of the library for matrices.
    """
    kernel = kernel.astype(x.dtype)
    if widen and kernel.shape[1] == 1 and x.ndim > 1:
        return product(jnp.pad(kernel, ((0, 0), (0, 1))), x)[:1]
    if x.ndim <= 2:
        return jnp.einsum("io,i...->o...", kernel, x)
    # Without the barrier, the CPU's compiler joins the transposition of the matrix's gradient to the product that makes
    # the gradient, and copies the entries in another order for it: that took four times as long.
    return jnp.einsum("oi,i...->o...", jax.lax.optimization_barrier(kernel.T), x)


def together(xs: Sequence[Float[Array, "_ *kept"]]) -> Float[Array, "c *kept"]:
    """Arrays side by side, for one product.

    Without the barrier, the compiler makes a product with constant meta-weights a sum of products, and computes that
    sum anew at every leaf that it arrives at: its work would grow with the square of the number of leaves.
    """
    return jax.lax.optimization_barrier(jnp.concatenate(xs))
