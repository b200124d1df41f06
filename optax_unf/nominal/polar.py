"""Polar factors of matrices, by Newton-Schulz."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

# Those of Muon (Jordan 2024) and of optax.contrib.muon: steep at zero, at the cost of singular values that end between
# about 0.7 and 1.2 rather than at 1.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def polar_factor(
    x: Float[Array, "*batch rows columns"], *, steps: int = 5, dtype: DTypeLike | None = None
) -> Float[Array, "*batch rows columns"]:
    r"""About the polar factor $U V^T$ of each matrix $U \Sigma V^T$.

    Five steps of the quintic Newton-Schulz iteration $X \leftarrow a X + (b A + c A^2) X$, $A = X X^T$, from
    $X / \|X\|_F$. Singular values above 1e-3 of the Frobenius norm end in about [0.7, 1.2], smaller ones below. A
    matrix of zeros gives zeros. No scale is special: a tiny gradient has the factor of a large one.

    Args:
      x: matrices, along any number of batch axes.
      steps: of the iteration.
      dtype: of the products: bfloat16 by default where there is an accelerator, else that of `x`.

    Returns:
      An array like `x`.

    References:
      Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024.

    Example:
      >>> import jax.numpy as jnp
      >>> polar_factor(jnp.diag(jnp.array([3.0, 2.0]))).round(1)
      Array([[1.1, 0. ],
             [0. , 0.7]], dtype=float32)
    """
    rows, columns = x.shape[-2:]
    if rows > columns:
        return polar_factor(x.mT, steps=steps, dtype=dtype).mT
    if dtype is None:
        dtype = x.dtype if jax.default_backend() == "cpu" else jnp.bfloat16

    # Squares of tiny entries would underflow, so the largest entry is made 1 first.
    unit = _normalized(x, jnp.max(jnp.abs(x), axis=(-2, -1), keepdims=True))
    unit = _normalized(unit, root(jnp.sum(unit * unit, axis=(-2, -1), keepdims=True))).astype(dtype)

    # With narrow products, the iteration on Gram matrices alone loses the small singular values.
    narrow = jnp.finfo(dtype).bits < 32
    iterate = _iterate_matrix if narrow or columns < 2 * rows else _iterate_gram
    return iterate(unit, steps).astype(x.dtype)


def polar_factors(matrices: Sequence[Float[Array, "_ _ _"]]) -> list[Array]:
    """The polar factors of batches of matrices, those of one shape together."""
    wide = [x if x.shape[-2] <= x.shape[-1] else x.mT for x in matrices]
    groups: dict[Any, list[int]] = {}
    for k, x in enumerate(wide):
        # Side by side in one array, parts of leaves with different shardings would lose them.
        groups.setdefault((x.shape[-2:], x.dtype) if jax.device_count() == 1 else k, []).append(k)

    factors: dict[int, Array] = {}
    for members in groups.values():
        together = polar_factor(jnp.concatenate([wide[k] for k in members]))
        start = 0
        for k in members:
            stop = start + wide[k].shape[0]
            factors[k] = together[start:stop]
            start = stop
    return [factors[k] if wide[k] is x else factors[k].mT for k, x in enumerate(matrices)]


def rms(x: Float[Array, "batch rows columns"]) -> Float[Array, "batch 1 1"]:
    """The root mean square of each matrix."""
    return root(jnp.mean(x * x, axis=(-2, -1), keepdims=True))


def root(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The square root, with derivative 0 at 0: where all gradients are 0, meta-gradients are finite."""
    return jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1)), 0)


def positive(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """A size to divide by: 1 where it is 0."""
    return jnp.where(x > 0, x, 1)


def _normalized(x: Array, size: Array) -> Array:
    return x / positive(size)


def _iterate_matrix(x: Array, steps: int) -> Array:
    a, b, c = COEFFICIENTS
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def _iterate_gram(x: Array, steps: int) -> Array:
    """The same polynomial of the matrix, from products of the smaller Gram matrix: cheaper where sides differ.

    With $P_k = a + b A_k + c A_k^2$, the matrix becomes $P_k X$ and its Gram matrix $P_k A_k P_k$.
    """
    a, b, c = COEFFICIENTS
    gram = x @ x.mT
    identity = jnp.broadcast_to(jnp.eye(gram.shape[-1], dtype=x.dtype), gram.shape)
    product = None
    for step in range(steps):
        polynomial = a * identity + b * gram + c * gram @ gram
        product = polynomial if product is None else polynomial @ product
        if step < steps - 1:
            gram = polynomial @ gram @ polynomial
    return x if product is None else product @ x
