"""Evaluating f on a large leaf tile by tile, without ever holding the hidden features of the whole leaf.

The trunk is pointwise, so a tile goes through it alone; while its features are at hand, the head's contractions are
added up. Contractions that would not fit into memory are multiplied by the head's matrices first, and so have few
channels.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from optax_unf.equivariant.contract import Tensor, contractions, mean_of_smallest

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
    trunk: Callable[[Float[Array, "channels entries"]], Float[Array, "features entries"]],
    kernels: Mapping[int, Float[Array, "features outputs"]],
    leaf: Tensor,
    extent: tuple[int, ...],
    entries: int,
) -> list[Float[Array, "_ ..."]]:
    """One leaf, or a part of one, through the trunk.

    Args:
      inputs: the input channels; those of the leaf of a part.
      start: where it begins along each of their axes.
      trunk: the pointwise part of f.
      kernels: matrices by which features are multiplied for some of the contractions, in the dtype to compute in; for
        the first, which keeps all axes, there must be one.
      leaf: the leaf or part, whose names must be distinct and all permuted.
      extent: how long it is along each axis of the inputs.
      entries: about how many entries to evaluate at a time.

    Returns:
      Every contraction, in the order of `contractions(leaf.names)`: of the features, or of their products.
    """
    cut = tiles(leaf.sizes, entries)
    read = _reader(inputs, start, extent, cut)
    every = [contraction for contraction, _ in contractions(leaf.names)]
    held = [c for k, c in enumerate(every) if k not in kernels]
    # The others are means of these.
    summed = [c for c in held if not any(set(c.kept) < set(larger.kept) for larger in held)]
    multiplied = [every[k] for k in kernels]
    means = [_Mean(cut, c.kept) for c in (*summed, *multiplied)]

    dtype, features = kernels[0].dtype, kernels[0].shape[0]
    joint = jnp.concatenate(list(kernels.values()), axis=1)
    widths = [kernel.shape[1] for kernel in kernels.values()]
    zero = _zero(jax.tree.leaves((inputs, trunk, kernels)), dtype)
    zeros = [mean.zeros(zero, n) for mean, n in zip(means, [features] * len(summed) + widths, strict=True)]
    overlapping = cut.view[1] % cut.length > 0

    def add_tile(n: Int[Array, ""], totals: list[Array]) -> list[Array]:
        # Plain `//` and `%` are several kernels each, for the sake of negative numbers.
        before, at = (0, n) if cut.view[0] == 1 else (jax.lax.div(n, cut.per_axis), jax.lax.rem(n, cut.per_axis))
        # Of tiles that overlap the last comes first, without what it shares: the next to last writes that over it.
        begin = jnp.where(at == 0, cut.view[1] - cut.length, (at - 1) * cut.length) if overlapping else at * cut.length
        h = trunk(jnp.stack([x.astype(dtype) for x in read(before, begin)]))
        if overlapping:
            new = (at > 0) | (jnp.arange(cut.length) >= -cut.view[1] % cut.length)
            h = h * jnp.repeat(new, cut.view[2])[None].astype(dtype)
        products = jax.lax.split(jnp.einsum("io,in->on", joint, h), widths)
        tile = [*(h for _ in summed), *products]
        return [mean.add(t, x, before, begin) for mean, t, x in zip(means, totals, tile, strict=True)]

    totals = jax.lax.fori_loop(0, cut.view[0] * cut.per_axis, add_tile, zeros)
    results = [mean.result(total) for mean, total in zip(means, totals, strict=True)]
    done = dict(zip(summed, results, strict=False))
    for contraction in held:
        if contraction not in done:
            done[contraction] = mean_of_smallest(done, contraction)
    done |= zip(multiplied, results[len(summed) :], strict=True)
    return [done[contraction] for contraction in every]


def _zero(arrays: Sequence[Array], dtype: jnp.dtype) -> Float[Array, ""]:
    """0, which varies over an axis of `jax.shard_map` if one of the arrays does, as what a loop adds to it will."""
    zeros = [jax.lax.full_like(x, 0, dtype, ()) for x in arrays if isinstance(x, jax.Array)]
    return functools.reduce(jnp.add, {jax.typeof(zero): zero for zero in zeros}.values())


def _reader(
    inputs: Sequence[Array], start: Sequence[Position], extent: tuple[int, ...], cut: Tiles
) -> Callable[[Position, Position], list[Float[Array, " entries"]]]:
    """A function that reads a tile of each input."""
    if cut.axis == 0 and extent[0] == cut.sizes[0]:
        # Whole rows of a part are read where they are, without a copy of the part.
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

    It is held as `[features, *shape]`, the axes that are summed having gone from the view of the tiles.
    """

    tiles: Tiles
    kept: tuple[int, ...]

    @functools.cached_property
    def shape(self) -> tuple[int, int, int]:
        """The shape `[before, size, after]` of what is kept."""
        cut = self.tiles.axis
        sizes = [size if axis in self.kept else 1 for axis, size in enumerate(self.tiles.sizes)]
        return math.prod(sizes[:cut]), sizes[cut], math.prod(sizes[cut + 1 :])

    def zeros(self, zero: Float[Array, ""], channels: int) -> Float[Array, "channels before size after"]:
        """The mean of no tiles yet."""
        return jax.lax.full_like(zero, 0, shape=(channels, *self.shape))

    def add(
        self,
        total: Float[Array, "channels before size after"],
        h: Float[Array, "channels entries"],
        before: Position,
        begin: Position,
    ) -> Float[Array, "channels before size after"]:
        """The mean with one more tile."""
        sizes, cut = self.tiles.sizes, self.tiles.axis
        gone = [axis for axis in range(len(sizes)) if axis not in self.kept]
        if not gone:
            return jax.lax.dynamic_update_slice(
                total, h.reshape(len(h), 1, self.tiles.length, -1), (0, before, begin, 0)
            )

        h = h.reshape(len(h), self.tiles.length, *sizes[cut + 1 :])
        h = jnp.sum(h, tuple(axis - cut + 1 for axis in gone if axis >= cut), keepdims=True)
        at = (0, self._position(before), begin if cut in self.kept else 0, 0)
        h = h.reshape(len(h), 1, h.shape[1], -1)
        # Divided here, where it is part of the addition, and not by a kernel of its own once all is added.
        entries = math.prod(sizes[axis] for axis in gone)
        return jax.lax.dynamic_update_slice(total, jax.lax.dynamic_slice(total, at, h.shape) + h / entries, at)

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

    def result(self, total: Float[Array, "channels before size after"]) -> Float[Array, "channels *kept"]:
        """The mean, with an axis for each that is kept, in the order of the leaf."""
        return total.reshape(total.shape[0], *(s for axis, s in enumerate(self.tiles.sizes) if axis in self.kept))
