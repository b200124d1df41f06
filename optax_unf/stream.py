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
from optax_unf.features import bounded

# Entries of a row in `mean_squares`: the rows of eight channels fit into the first-level cache.
_ROW = 2048


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
    length = min(sizes[axis], max(1, entries // after))
    return Tiles(sizes, axis, -(-sizes[axis] // -(-sizes[axis] // length)))


def mean_squares(xs: Sequence[Float[Array, "*sizes"]]) -> Float[Array, "channels 1"]:
    """The mean square of each channel of a leaf, as `optax_unf.features.normalize` takes it.

    One sum over all entries would be a single chain of additions. Summed row by row, many are added in parallel.
    """
    size = xs[0].size
    length = min(_ROW, size)
    rows = size // length
    flat = [x.reshape(-1) for x in xs]

    def add(n: Int[Array, ""], total: Float[Array, "channels row"]) -> Float[Array, "channels row"]:
        row = jnp.stack([jax.lax.dynamic_slice(x, (n * length,), (length,)) for x in flat])
        return total + jnp.square(bounded(row))

    total = jax.lax.fori_loop(0, rows, add, jnp.zeros((len(xs), length), xs[0].dtype))
    rest = jnp.square(bounded(jnp.stack([x[rows * length :] for x in flat])))
    return (total.sum(1, keepdims=True) + rest.sum(1, keepdims=True)) / size


def stream(
    inputs: Sequence[Float[Array, "*sizes"]],
    trunk: Callable[[Float[Array, "channels entries"]], Float[Array, "features entries"]],
    whole: Float[Array, "features outputs"],
    leaf: Tensor,
    entries: int,
) -> tuple[Float[Array, "outputs *sizes"], list[Float[Array, "features *kept"]]]:
    """One leaf through the trunk.

    Args:
      inputs: the input channels.
      trunk: the pointwise part of f.
      whole: the matrix of all that is made of single entries.
      leaf: the leaf, whose names must be distinct and all permuted.
      entries: about how many entries to evaluate at a time.

    Returns:
      The features' product with `whole`, with its axes sorted by name, and every contraction but the whole, in the
      order of `contractions(leaf.names)`.
    """
    cut = tiles(leaf.sizes, entries)
    views = [x.reshape(cut.view) for x in inputs]
    sums = [_Sum(cut, axis) for axis in range(len(leaf.sizes))]
    dtype, features = inputs[0].dtype, whole.shape[0]
    start = (
        jnp.zeros((whole.shape[1], *cut.view), dtype),
        [jnp.zeros((features, *total.shape), dtype) for total in sums],
    )

    def step(n: Int[Array, ""], carry: tuple[Array, list[Array]]) -> tuple[Array, list[Array]]:
        products, totals = carry
        before, at = n // cut.per_axis, n % cut.per_axis
        begin = jnp.minimum(at * cut.length, cut.view[1] - cut.length)
        shape = (1, cut.length, cut.view[2])
        x = jnp.concatenate([jax.lax.dynamic_slice(v, (before, begin, 0), shape).reshape(1, -1) for v in views])
        h = trunk(x)
        y = jnp.einsum("io,in->on", whole, h).reshape(-1, *shape)
        products = jax.lax.dynamic_update_slice(products, y, (0, before, begin, 0))
        h = h.reshape(features, *shape[1:])
        # Positions that the tile before has added already.
        new = None if cut.view[1] % cut.length == 0 else begin + jnp.arange(cut.length) >= at * cut.length
        return products, [total.add(t, h, before, begin, new) for total, t in zip(sums, totals, strict=True)]

    products, totals = jax.lax.fori_loop(0, cut.view[0] * cut.per_axis, step, start)
    order = contractions(leaf.names)[0][0].kept
    products = jnp.transpose(products.reshape(-1, *leaf.sizes), (0, *(axis + 1 for axis in order)))
    return products, _contractions(leaf, [total.result(t) for total, t in zip(sums, totals, strict=True)])


@dataclasses.dataclass(frozen=True)
class _Sum:
    """The sum along one axis of a leaf, added up tile by tile.

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
        before: Int[Array, ""],
        begin: Int[Array, ""],
        new: Array | None,
    ) -> Float[Array, "features before size after"]:
        """The sum with one more tile."""
        sizes, cut = self.tiles.sizes, self.tiles.axis
        if new is not None:
            h = h * new[:, None].astype(h.dtype)
        if self.axis < cut:
            # The index of the position among the axes before the cut, without this one.
            inner = math.prod(sizes[self.axis + 1 : cut])
            at = (before // (inner * sizes[self.axis]) * inner + before % inner, begin, 0)
        elif self.axis == cut:
            h = _sum_middle(h)
            at = (before, 0, 0)
        else:
            after = sizes[cut + 1 :]
            h = _sum_axis(h.reshape(*h.shape[:2], *after), self.axis - cut - 1 + 2).reshape(*h.shape[:2], -1)
            at = (before, begin, 0)
        at = (0, *at)
        old = jax.lax.dynamic_slice(total, at, (h.shape[0], 1, *h.shape[1:]))
        return jax.lax.dynamic_update_slice(total, old + h[:, None], at)

    def result(self, total: Float[Array, "features before size after"]) -> Float[Array, "features *sizes"]:
        """The mean along the axis, in the shape of the leaf without it."""
        sizes = self.tiles.sizes
        rest = sizes[: self.axis] + sizes[self.axis + 1 :]
        return total.reshape(total.shape[0], *rest) / sizes[self.axis]


def _sum_middle(h: Float[Array, "features length after"]) -> Float[Array, "features 1 after"]:
    return _sum_axis(h, 1)[:, None] if h.shape[2] > 1 else _sum_axis(h[:, :, 0], 1)[:, None, None]


def _sum_axis(x: Array, axis: int) -> Array:
    """The sum along an axis; along the fastest, as a product with ones, whose additions run in parallel."""
    if axis == x.ndim - 1:
        return jnp.einsum("...n,n->...", x, jnp.ones(x.shape[-1], x.dtype))
    return x.sum(axis)


def _contractions(leaf: Tensor, means: list[Float[Array, "features *sizes"]]) -> list[Array]:
    """Every contraction but the whole, from the means along single axes."""
    (whole, _), *others = contractions(leaf.names)
    done: dict[Contraction, Array] = {}
    for contraction, _ in others:
        missing = [axis for axis in whole.kept if axis not in contraction.kept]
        if len(missing) == 1:
            rest = [axis for axis in range(len(leaf.names)) if axis != missing[0]]
            order = [rest.index(axis) + 1 for axis in contraction.kept]
            done[contraction] = jnp.transpose(means[missing[0]], (0, *order))
        else:
            done[contraction] = mean_axis(done, contraction)
    return list(done.values())
