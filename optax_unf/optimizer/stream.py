"""Evaluating f on a large leaf in blocks of entries, without ever holding the hidden features of the whole leaf.

The trunk is pointwise, so a block of entries goes through it alone; while its features are at hand, the head's
contractions are added up. Those of which the head makes few channels are multiplied by its matrices first, so that sums
of few channels take the place of sums of all features.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from optax_unf.nn.contract import Tensor, contractions, mean_of_smallest
from optax_unf.nn.layout import ChannelAxis

Position: TypeAlias = int | Int[Array, ""]
"""An index along an axis."""


@dataclasses.dataclass(frozen=True)
class Tiles:
    """How a leaf is cut: one position of the axes before `axis`, `length` of it, and all of the axes after it.

    The leaf is seen as `[before, size, after]`. The last tile along the axis overlaps the one before it if the length
    does not divide the size.

    Attributes:
      sizes: the leaf's shape.
      axis: the axis that is cut.
      length: positions of the axis in one tile.
    """

    sizes: tuple[int, ...]
    axis: int
    length: int

    @property
    def view(self) -> tuple[int, int, int]:
        """The shape `[before, size, after]`."""
        axis = self.axis
        return math.prod(self.sizes[:axis]), self.sizes[axis], math.prod(self.sizes[axis + 1 :])

    @property
    def per_axis(self) -> int:
        """Tiles along the axis."""
        return -(-self.sizes[self.axis] // self.length)


def tiles(sizes: tuple[int, ...], entries: int) -> Tiles:
    """Tiles of at most about `entries` entries."""
    axis, after = len(sizes) - 1, 1
    while axis > 0 and after * sizes[axis] <= entries:
        after *= sizes[axis]
        axis -= 1
    size = sizes[axis]
    length = min(size, max(1, entries // after))
    # What tiles share is masked, and evaluated twice: rather somewhat smaller ones.
    divisor = next(d for d in range(length, 0, -1) if size % d == 0)
    return Tiles(sizes, axis, divisor if 2 * divisor >= length else -(-size // -(-size // length)))


def stream(
    inputs: Sequence[Float[Array, "..."]],
    start: Sequence[Position],
    trunk: Callable[[Float[Array, "channels entries"]], Float[Array, "_ _"]],
    kernels: Mapping[int, Float[Array, "features outputs"]],
    leaf: Tensor,
    extent: tuple[int, ...],
    entries: int,
    channel_axis: ChannelAxis,
) -> list[Float[Array, "_ *kept"]]:
    """One leaf, or a block of one, through the trunk.

    Args:
      inputs: the input channels; a block is a part of them.
      start: where it begins along each of their axes.
      trunk: the pointwise part of f, which makes features `[features, entries]` or `[entries, features]`.
      kernels: matrices by which features are multiplied for some of the contractions, in the dtype to compute in; for
        the first, which keeps all axes, there must be one.
      leaf: the leaf or block, whose names must be distinct and all permuted.
      extent: how long it is along each axis of the inputs.
      entries: about how many entries to evaluate at a time.
      channel_axis: where the trunk's features have their channels.

    Returns:
      Every contraction, in the order of `contractions(leaf.names)`: of the features, or of their products.
    """
    cut = tiles(leaf.sizes, entries)
    read = _reader(inputs, start, extent, cut)
    every = [contraction for contraction, _ in contractions(leaf.names)]
    held = [c for k, c in enumerate(every) if k not in kernels]
    # The others are means of these.
    summed = [c for c in held if not any(set(c.kept) < set(larger.kept) for larger in held)]
    means = [
        *(_Mean(cut, c.kept, channel_axis) for c in summed),
        *(_Mean(cut, every[k].kept, channel_axis=0) for k in kernels),
    ]
    dtype, features = kernels[0].dtype, kernels[0].shape[0]
    joint = jnp.concatenate(list(kernels.values()), axis=1)
    widths = [kernel.shape[1] for kernel in kernels.values()]
    if channel_axis == -1 and joint.shape[1] > 1:
        # A CPU takes four columns at a time: two take longer than four.
        joint = jnp.pad(joint, ((0, 0), (0, -joint.shape[1] % 4)))
    zero = _zero(jax.tree.leaves((inputs, trunk, kernels)), dtype)
    zeros = [mean.zeros(zero, n) for mean, n in zip(means, [features] * len(summed) + widths, strict=True)]
    overlapping = cut.view[1] % cut.length > 0

    def step(n: Int[Array, ""], totals: list[Array]) -> list[Array]:
        # Plain `//` and `%` are several kernels each, for the sake of negative numbers.
        before, at = (0, n) if cut.view[0] == 1 else (jax.lax.div(n, cut.per_axis), jax.lax.rem(n, cut.per_axis))
        # Of tiles that overlap the last comes first, without what it shares: the next to last writes that over it.
        begin = jnp.where(at == 0, cut.view[1] - cut.length, (at - 1) * cut.length) if overlapping else at * cut.length
        h = trunk(jnp.stack([x.astype(dtype) for x in read(before, begin)]))
        if overlapping:
            new = (at > 0) | (jnp.arange(cut.length) >= -cut.view[1] % cut.length)
            new = jnp.repeat(new, cut.view[2]).astype(dtype)
            h = h * (new if channel_axis == 0 else new[:, None])
        products = _products(joint, widths, h, channel_axis)
        tile = [*(h for _ in summed), *products]
        return [mean.add(t, x, before, begin) for mean, t, x in zip(means, totals, tile, strict=True)]

    totals = jax.lax.fori_loop(0, cut.view[0] * cut.per_axis, step, zeros)
    results = [mean.result(total) for mean, total in zip(means, totals, strict=True)]
    done = dict(zip(summed, results, strict=False))
    for contraction in held:
        if contraction not in done:
            done[contraction] = mean_of_smallest(done, contraction)
    done |= zip((every[k] for k in kernels), results[len(summed) :], strict=True)
    return [done[contraction] for contraction in every]


def _products(
    kernel: Float[Array, "features outputs"],
    widths: Sequence[int],
    h: Float[Array, "_ _"],
    channel_axis: ChannelAxis,
) -> Sequence[Float[Array, "_ entries"]]:
    """Parts of the product with the features of a tile, channels first, without the columns that fill it up."""
    if channel_axis == 0:
        return jax.lax.split(jnp.einsum("io,in->on", kernel, h), widths)
    return [x.T for x in jax.lax.split((h @ kernel)[:, : sum(widths)], widths, axis=1)]


def _zero(arrays: Sequence[Array], dtype: jnp.dtype) -> Float[Array, ""]:
    """0, which varies over an axis of `jax.shard_map` if one of the arrays does, as what a loop adds to it will."""
    zeros = [jax.lax.full_like(x, 0, dtype, ()) for x in arrays if isinstance(x, jax.Array)]
    return functools.reduce(jnp.add, {jax.typeof(zero): zero for zero in zeros}.values())


def _reader(
    inputs: Sequence[Array], start: Sequence[Position], extent: tuple[int, ...], cut: Tiles
) -> Callable[[Position, Position], list[Float[Array, " entries"]]]:
    """A function that reads a tile of each input."""
    if cut.axis == 0 and extent[0] == cut.sizes[0]:
        # Whole rows of a block are read where they are, without a copy of the block.
        shape = (cut.length, *extent[1:])
        return lambda before, begin: [
            jax.lax.dynamic_slice(x, (start[0] + begin, *start[1:]), shape).reshape(-1) for x in inputs
        ]
    views = [jax.lax.dynamic_slice(x, start, extent).reshape(cut.view) for x in inputs]
    shape = (1, cut.length, cut.view[2])
    return lambda before, begin: [jax.lax.dynamic_slice(v, (before, begin, 0), shape).reshape(-1) for v in views]


@dataclasses.dataclass(frozen=True)
class _Mean:
    """The mean over all axes of a leaf but those kept, added up tile by tile.

    It is held as `[features, *shape]` or `[*shape, features]`, the axes that are summed having gone from the view of
    the tiles.
    """

    tiles: Tiles
    kept: tuple[int, ...]
    channel_axis: ChannelAxis

    @functools.cached_property
    def shape(self) -> tuple[int, int, int]:
        """The shape `[before, size, after]` of what is kept."""
        cut = self.tiles.axis
        sizes = [size if axis in self.kept else 1 for axis, size in enumerate(self.tiles.sizes)]
        return math.prod(sizes[:cut]), sizes[cut], math.prod(sizes[cut + 1 :])

    def zeros(self, zero: Float[Array, ""], channels: int) -> Float[Array, "..."]:
        """The mean of no tiles yet."""
        shape = (channels, *self.shape) if self.channel_axis == 0 else (*self.shape, channels)
        return jax.lax.full_like(zero, 0, shape=shape)

    def add(
        self, total: Float[Array, "..."], h: Float[Array, "..."], before: Position, begin: Position
    ) -> Float[Array, "..."]:
        """The mean with one more tile, `[features, length * after]` or `[length * after, features]`."""
        sizes, cut = self.tiles.sizes, self.tiles.axis
        rows, length, position = 1 + self.channel_axis, self.tiles.length, before
        if len(self.kept) < len(sizes):
            h = h.reshape(*h.shape[:rows], length, *sizes[cut + 1 :], *h.shape[rows + 1 :])
            if cut not in self.kept:
                h, length, begin = _sum_of_rows(h, rows), 1, 0
            h = jnp.sum(h, tuple(axis - cut + rows for axis in range(cut + 1, len(sizes)) if axis not in self.kept))
            position = self._position(before)
        shape = (*total.shape[:rows], 1, length, *total.shape[rows + 2 :])
        at = (0, position, begin, 0) if self.channel_axis == 0 else (position, begin, 0, 0)
        h = h.reshape(shape)
        if len(self.kept) < len(sizes):
            # Divided here, where it is part of the addition, and not by a kernel of its own once all is added.
            entries = math.prod(size for axis, size in enumerate(sizes) if axis not in self.kept)
            h = jax.lax.dynamic_slice(total, at, shape) + h / entries
        return jax.lax.dynamic_update_slice(total, h, at)

    def _position(self, before: Position) -> Position:
        """The index of a position of the axes before the cut among those of them that are kept."""
        position, stride = 0, 1
        for axis in reversed(range(self.tiles.axis)):
            size = self.tiles.sizes[axis]
            if axis in self.kept:
                position += stride * jax.lax.rem(before, size)
                stride *= size
            before = jax.lax.div(before, size)
        return position

    def result(self, total: Float[Array, "..."]) -> Float[Array, "features *kept"]:
        """The mean, channels first, with an axis for each that is kept, in the order of the leaf."""
        sizes = (size for axis, size in enumerate(self.tiles.sizes) if axis in self.kept)
        total = jnp.moveaxis(total, self.channel_axis, 0)
        return total.reshape(total.shape[0], *sizes)


def _sum_of_rows(x: Float[Array, "..."], axis: int) -> Float[Array, "..."]:
    """The sum over an axis, which stays as one of size 1."""
    if axis > 0:
        return jnp.sum(x, axis, keepdims=True)
    # A CPU's compiler adds up the first axis one number at a time, and sums of rows in vectors.
    rows = x.shape[0]
    if rows == 1:
        return x
    half = rows // 2
    total = _sum_of_rows(x[:half] + x[half : 2 * half], 0)
    return total + x[2 * half :] if rows % 2 else total
