"""Evaluating f on a large leaf in blocks of entries, without ever holding the hidden features of the whole leaf.

The trunk is pointwise, so a block of entries goes through it alone; while its features are at hand, they are added to
the sums along each axis of the leaf, and multiplied by the matrix of all that the head makes of single entries. The
sums give every other contraction that the head needs.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from optax_unf.contract import Contraction, Tensor, contractions, mean_axis


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
    # Tiles that overlap are masked, which takes two more passes over their features: rather somewhat smaller ones.
    divisor = next(d for d in range(length, 0, -1) if size % d == 0)
    return Tiles(sizes, axis, divisor if 2 * divisor >= length else -(-size // -(-size // length)))


def stream(
    inputs: Sequence[Float[Array, "..."]],
    start: Sequence[int | Int[Array, ""]],
    trunk: Callable[[Float[Array, "channels entries"]], Float[Array, "features entries"]],
    whole: Float[Array, "features outputs"],
    leaf: Tensor,
    extent: tuple[int, ...],
    entries: int,
) -> tuple[Float[Array, "outputs *sizes"], list[Float[Array, "features *kept"]]]:
    """One leaf, or a block of one, through the trunk.

    Args:
      inputs: the input channels; a block is a part of them.
      start: where it begins along each of their axes.
      trunk: the pointwise part of f.
      whole: the matrix of all that is made of single entries, in the dtype to compute in.
      leaf: the leaf or block, whose names must be distinct and all permuted.
      extent: how long it is along each axis of the inputs.
      entries: about how many entries to evaluate at a time.

    Returns:
      The features' product with `whole`, and every contraction but the whole, in the order of
      `contractions(leaf.names)`.
    """
    cut = tiles(leaf.sizes, entries)
    read = _reader(inputs, start, extent, cut)
    means = [_Mean(cut, axis) for axis in range(len(leaf.sizes))]
    dtype, features = whole.dtype, whole.shape[0]
    overlapping = cut.view[1] % cut.length > 0
    zeros = (
        jnp.zeros((whole.shape[1], *cut.view), dtype),
        [jnp.zeros((features, *mean.shape), dtype) for mean in means],
    )

    def step(n: Int[Array, ""], carry: tuple[Array, list[Array]]) -> tuple[Array, list[Array]]:
        products, totals = carry
        # Plain `//` and `%` are several kernels each, for the sake of negative numbers.
        before, at = (0, n) if cut.view[0] == 1 else (jax.lax.div(n, cut.per_axis), jax.lax.rem(n, cut.per_axis))
        begin = at * cut.length
        if overlapping:
            begin = jnp.minimum(begin, cut.view[1] - cut.length)
        shape = (1, cut.length, cut.view[2])
        h = trunk(jnp.stack([x.astype(dtype) for x in read(before, begin)]))
        y = jnp.einsum("io,in->on", whole, h).reshape(-1, *shape)
        products = jax.lax.dynamic_update_slice(products, y, (0, before, begin, 0))
        h = h.reshape(features, *shape[1:])
        # Positions that the tile before has added already.
        new = begin + jnp.arange(cut.length) >= at * cut.length if overlapping else None
        return products, [mean.add(t, h, before, begin, new) for mean, t in zip(means, totals, strict=True)]

    products, totals = jax.lax.fori_loop(0, cut.view[0] * cut.per_axis, step, zeros)
    return products.reshape(-1, *leaf.sizes), _contractions(
        leaf, [mean.result(t) for mean, t in zip(means, totals, strict=True)]
    )


def _reader(
    inputs: Sequence[Array], start: Sequence[int | Int[Array, ""]], extent: tuple[int, ...], cut: Tiles
) -> Callable[[Int[Array, ""] | int, Int[Array, ""]], list[Float[Array, " entries"]]]:
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
    """The mean along one axis of a leaf, added up tile by tile.

    It is held as `[features, *shape]`, the axis that is summed having gone from the view of the tiles.
    """

    tiles: Tiles
    axis: int

    @functools.cached_property
    def shape(self) -> tuple[int, int, int]:
        """The shape `[before, size, after]` without the axis."""
        before, size, after = self.tiles.view
        gone = self.tiles.sizes[self.axis]
        if self.axis < self.tiles.axis:
            return before // gone, size, after
        return (before, 1, after) if self.axis == self.tiles.axis else (before, size, after // gone)

    def add(
        self,
        total: Float[Array, "features before size after"],
        h: Float[Array, "features length after"],
        before: Int[Array, ""] | int,
        begin: Int[Array, ""],
        new: Array | None,
    ) -> Float[Array, "features before size after"]:
        """The mean with one more tile."""
        sizes, cut = self.tiles.sizes, self.tiles.axis
        if new is not None:
            h = h * new[:, None].astype(h.dtype)
        if self.axis < cut:
            # The index of the position among the axes before the cut, without this one.
            inner = math.prod(sizes[self.axis + 1 : cut])
            outer = jax.lax.div(before, inner * sizes[self.axis])
            at = (outer * inner + jax.lax.rem(before, inner), begin, 0)
        elif self.axis == cut:
            h = jnp.sum(h, 1, keepdims=True)
            at = (before, 0, 0)
        else:
            after = sizes[cut + 1 :]
            h = jnp.sum(h.reshape(*h.shape[:2], *after), self.axis - cut + 1).reshape(*h.shape[:2], -1)
            at = (before, begin, 0)
        at = (0, *at)
        old = jax.lax.dynamic_slice(total, at, (h.shape[0], 1, *h.shape[1:]))
        # Divided here, where it is part of the addition, and not by a kernel of its own once all is added.
        return jax.lax.dynamic_update_slice(total, old + h[:, None] / sizes[self.axis], at)

    def result(self, total: Float[Array, "features before size after"]) -> Float[Array, "features *sizes"]:
        """The mean along the axis, in the shape of the leaf without it."""
        sizes = self.tiles.sizes
        rest = sizes[: self.axis] + sizes[self.axis + 1 :]
        return total.reshape(total.shape[0], *rest)


def _contractions(leaf: Tensor, means: list[Float[Array, "features *sizes"]]) -> list[Array]:
    """Every contraction but the whole, from the means along single axes."""
    (whole, _), *others = contractions(leaf.names)
    done: dict[Contraction, Array] = {}
    for contraction, _ in others:
        missing = [axis for axis in whole.kept if axis not in contraction.kept]
        if len(missing) == 1:
            done[contraction] = means[missing[0]]
        else:
            done[contraction] = mean_axis(done, contraction)
    return list(done.values())
