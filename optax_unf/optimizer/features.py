"""The input channels of the learned update: weight, gradient, momenta, iteration number."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from optax_unf._xla import apart, read_again

# Decays of the momentum accumulators that the network sees (Zhou, Finn & Harrison 2024, Section 4.2).
DECAYS = (0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)
# Time scales of the encoding of the iteration number, as in Metz et al. 2020 (arXiv:2009.11243).
TIME_SCALES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 3e4, 1e5)
# Decay of the mean square of each entry's gradient, as in Adam.
SQUARE_DECAY = 0.999
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


def preconditioned(
    grad: Float[Array, "*shape"], mean_square: Float[Array, "*shape"], count: Int[Array, ""]
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """A gradient divided by its root mean square over time, entry by entry, and the new mean square.

    As in Adam (Kingma & Ba 2015, arXiv:1412.6980), the mean square is an exponential moving average from zero, which is
    corrected for where it started. Entries of a usual size come out at most 1 / sqrt(1 - decay) large.

    Args:
      grad: the gradient.
      mean_square: the moving average of its square so far, in the dtype of `grad`.
      count: how many gradients there were before this one.
    """
    new = SQUARE_DECAY * mean_square + (1.0 - SQUARE_DECAY) * jnp.square(bounded(grad))
    unbiased = new / (1.0 - SQUARE_DECAY ** (count.astype(grad.dtype) + 1.0))
    # What is not finite stays so.
    numerator = jnp.where(jnp.isfinite(grad), bounded(grad), grad)
    # Under the root, so that there is a derivative where all gradients were 0.
    return numerator / jnp.sqrt(unbiased + _SMALLEST**2), new


def noise_squares(count: Int[Array, ""], dtype: jnp.dtype) -> Float[Array, " 7"]:
    """The mean squares of gradient and momenta at step `count`, were gradients white noise of unit variance.

    Divided by their roots, momenta of gradients from `preconditioned` keep what tells signal from noise: their size.
    """
    decays = jnp.array(DECAYS, dtype)
    momenta = (1 - decays) / (1 + decays) * -jnp.expm1(2 * (count.astype(dtype) + 1) * jnp.log(decays))
    return jnp.concatenate([jnp.ones(1, dtype), momenta])


def normalize(
    x: Float[Array, "channels *shape"], known: Float[Array, " known"] | None = None
) -> Float[Array, "channels *shape"]:
    """Divides each channel by its root mean square, and clips what is left to +-10.

    Finite for every finite input in float32, from 1e-38 to 1e38; NaN stays NaN, so that it is seen.

    Args:
      x: the channels of a leaf.
      known: mean squares of the last channels, to take instead of what they are in the leaf.
    """
    squares = jnp.square(bounded(x if known is None else x[: len(x) - len(known)]))
    if x.ndim > 2:
        squares = squares.sum(-1)  # alone, and first: XLA adds up several axes at once more slowly
    mean_square = squares.sum(tuple(range(1, squares.ndim))) / max(math.prod(x.shape[1:]), 1)
    if known is not None:
        mean_square = jnp.concatenate([mean_square, known])
    return scaled(x, mean_square.reshape(-1, *(1 for _ in x.shape[1:])))


def mean_squares(
    channels: Sequence[Float[Array, "..."]], known: Float[Array, " known"] | None, dtype: jnp.dtype
) -> Float[Array, "channels 1"]:
    """The mean square of each channel of a large leaf, for `scaled`.

    As products, which take one pass at the speed of memory. Those that are too large for `normalize` come out as the
    largest of its own.

    Args:
      channels: the channels of the leaf.
      known: mean squares of the last ones, to take instead of what they are in the leaf.
      dtype: to compute in.
    """
    measured = channels[: len(channels) - (0 if known is None else len(known))]
    flat = [x.astype(dtype).reshape(-1) for x in read_again(measured)]
    found = jnp.stack([jnp.vdot(x, x, precision=jax.lax.Precision.HIGHEST) for x in flat]) / flat[0].size
    found = jnp.minimum(found, _LARGEST**2)
    return (found if known is None else jnp.concatenate([found, known]))[:, None]


def bounded(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The values whose squares `normalize` sums."""
    return jnp.clip(x, -_LARGEST, _LARGEST)


def scaled(x: Float[Array, "*shape"], mean_square: Float[Array, "*#shape"]) -> Float[Array, "*shape"]:
    """What `normalize` makes of entries, given the mean squares of their channels."""
    return jnp.clip(bounded(x) / jnp.sqrt(mean_square + _SMALLEST**2), -_CLIP, _CLIP)


def pack(leaves: Sequence[Float[Array, "channels ..."]]) -> Float[Array, "channels entries"]:
    """All leaves side by side, so that a pointwise layer is one matrix product for the whole weight space."""
    return jnp.concatenate([x.reshape(x.shape[0], -1) for x in leaves], axis=1)


def unpack(
    packed: Float[Array, "channels entries"], shapes: Sequence[tuple[int, ...]]
) -> list[Float[Array, "channels ..."]]:
    """The inverse of `pack`."""
    parts = apart(packed, [math.prod(shape) for shape in shapes], axis=1)
    return [part.reshape(packed.shape[0], *shape) for part, shape in zip(parts, shapes, strict=True)]
