"""A matrix applied to the channels of every entry, and channels side by side for it."""

import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Up to so many parts, where each begins is a number in the code that takes it.
_FEW_PARTS = 16


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


def apart(x: Float[Array, "..."], sizes: Sequence[int], axis: int = 0) -> list[Float[Array, "..."]]:
    """Parts of an array that lie side by side along an axis, as `jax.lax.split` gives them.

    Where there are many, the code that takes them reads from an array where its part begins. So it is the same for all
    parts of a shape, and the CPU's compiler makes it once.
    """
    if len(sizes) <= _FEW_PARTS:
        return list(jax.lax.split(x, sizes, axis))
    return _many_apart(x, tuple(sizes), axis)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _many_apart(x: Array, sizes: tuple[int, ...], axis: int) -> list[Array]:
    starts = itertools.accumulate(sizes[:-1], initial=0)
    # With other numbers beside it: one alone, and a sequence of them, is put into the code, barrier or not.
    starts = jax.lax.optimization_barrier([jnp.array([start, -1, -1], jnp.int32) for start in starts])
    return [jax.lax.dynamic_slice_in_dim(x, at[0], size, axis) for at, size in zip(starts, sizes, strict=True)]


@_many_apart.defjvp
def _many_apart_jvp(
    sizes: tuple[int, ...], axis: int, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[list[Array], list[Array]]:
    # The gradient of a split puts the parts together, that of slices adds them up.
    return _many_apart(*primals, sizes, axis), list(jax.lax.split(*tangents, sizes, axis))
