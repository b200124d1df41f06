"""Workarounds for XLA, one a function: what happens without it, where that was seen, and how to see it again.

All were seen with jax 0.10.2 on CPUs with AVX2 and AVX-512, unless another device is named. The figures, and what was
tried and not kept, are in docs/performance.md.
"""

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

    Without the barrier, the compiler joins the transposition of the matrix's gradient to the product that makes the
    gradient, and copies the entries in another order for it: four times as long. To see: `benchmarks/meta_training.py`.

    With `widen` a matrix of one column gets a second one, of zeros: the compiler makes code of its own for every
    product with a vector, 109 instead of 22 ms each, and 39.0 instead of 29.3 s for 6 blocks of GPT-2 with tied
    coefficients. To see: `benchmarks/scale.py --blocks 6 --coefficients tied`.
    """
    kernel = kernel.astype(x.dtype)
    if widen and kernel.shape[1] == 1 and x.ndim > 1:
        return product(jnp.pad(kernel, ((0, 0), (0, 1))), x)[:1]
    if x.ndim <= 2:
        return jnp.einsum("io,i...->o...", kernel, x)
    return jnp.einsum("oi,i...->o...", jax.lax.optimization_barrier(kernel.T), x)


def together(xs: Sequence[Float[Array, "_ ..."]]) -> Float[Array, "c *kept"]:
    """Arrays side by side, for one product.

    Without the barrier, the compiler makes a product with constant meta-weights a sum of products, and computes that
    sum anew at every leaf that it arrives at: 39,971 instead of 27,713 instructions for 6 blocks of GPT-2, and 24
    blocks take 3 times as long as 12. To see: `benchmarks/scale.py --blocks 6` and `12`.
    """
    return jax.lax.optimization_barrier(jnp.concatenate(xs))


def read_again(xs: Sequence[Float[Array, "..."]]) -> Sequence[Float[Array, "..."]]:
    """Arrays that are computed once, and then read by what follows.

    Without the barrier, a GPU's compiler (H200) computes momenta in the kernel that sums their squares, cannot write
    them over the old ones there, and copies them: 1.49 instead of 1.215 times the memory of parameters, gradients and
    state at 124 million parameters, and 269 copies a step. To see: `benchmarks/scale.py` on a GPU.
    """
    return jax.lax.optimization_barrier(xs)


def apart(x: Float[Array, "..."], sizes: Sequence[int], axis: int = 0) -> list[Float[Array, "..."]]:
    """Parts of an array that lie side by side along an axis, as `jax.lax.split` gives them.

    Where there are many, the code that takes them reads from an array where its part begins. So it is the same for all
    parts of a shape, and the compiler makes it once: without it a block of GPT-2 adds 28 kernels, and 6 blocks compile
    in 20.1 instead of 14.5 s. To see: `pytest -m xla tests/nn`, which counts kernels.
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
