"""The input channels of the learned update: weight, gradient, momenta, iteration number."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from optax_unf.contract import sum_axis

# Decays of the momentum accumulators that the network sees (Zhou, Finn & Harrison 2024, Section 4.2).
DECAYS = (0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)
# Time scales of the encoding of the iteration number, as in Metz et al. 2020 (arXiv:2009.11243).
TIME_SCALES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 3e4, 1e5)
ENTRY_CHANNELS = 2 + len(DECAYS)
TIME_CHANNELS = len(TIME_SCALES)

# Squares of clipped values stay finite in float32, and so do their sums.
_LARGEST = 1e15
# Below this root mean square a channel fades to zero instead of being scaled up to one.
_SMALLEST = 1e-8
_CLIP = 10.0


def encode_step(count: Int[Array, ""]) -> Float[Array, " 11"]:
    """The iteration number as `tanh(t / scale - 1)` at 11 time scales from 1 to 100,000 steps."""
    return jnp.tanh(jnp.asarray(count, jnp.float32) / jnp.array(TIME_SCALES, jnp.float32) - 1.0)


def normalize(x: Float[Array, "channels *shape"]) -> Float[Array, "channels *shape"]:
    """Divides each channel by its root mean square, and clips what is left to +-10.

    Finite for every finite input in float32, from 1e-38 to 1e38; NaN stays NaN, so that it is seen.
    """
    squares = jnp.square(bounded(x))
    if x.ndim > 2:
        squares = sum_axis(squares, -1)
    total = squares.sum(tuple(range(1, squares.ndim)))
    mean_square = total / max(math.prod(x.shape[1:]), 1)
    return scaled(x, mean_square.reshape(-1, *(1 for _ in x.shape[1:])))


def bounded(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The values whose squares `normalize` sums."""
    return jnp.clip(x, -_LARGEST, _LARGEST)


def scaled(x: Float[Array, "*shape"], mean_square: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """What `normalize` makes of entries, given the mean squares of their channels."""
    return jnp.clip(bounded(x) / jnp.sqrt(mean_square + _SMALLEST**2), -_CLIP, _CLIP)


def pack(leaves: Sequence[Float[Array, "channels *shape"]]) -> Float[Array, "channels entries"]:
    """All leaves side by side, so that a pointwise layer is one matrix product for the whole weight space."""
    return jnp.concatenate([x.reshape(x.shape[0], -1) for x in leaves], axis=1)


def unpack(
    packed: Float[Array, "channels entries"], shapes: Sequence[tuple[int, ...]]
) -> list[Float[Array, "channels *shape"]]:
    """The inverse of `pack`."""
    # A split and not slices: its gradient puts the parts together, that of slices adds them up.
    parts = jax.lax.split(packed, [math.prod(shape) for shape in shapes], axis=1)
    return [part.reshape(packed.shape[0], *shape) for part, shape in zip(parts, shapes, strict=True)]
