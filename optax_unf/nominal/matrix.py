"""A leaf, or a part of one, as a batch of matrices."""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Shaped

from optax_unf.spec.axes import Concat, factors_of
from optax_unf.spec.leaf import LeafSpec, Part

Group: TypeAlias = tuple[int, ...]  # the factors of a part that are one axis of the leaf

# Last keys of leaves that are no matrices, whatever their axes.
VECTORS = re.compile(
    r"(^|/)([^/]*(bias|scale|pos)[^/]*|b|offset|cls|cls_token|wpe)(/value)?$|(pos[^/]*|wpe)/embedding$", re.IGNORECASE
)


@dataclasses.dataclass(frozen=True)
class Matrix:
    """The axes of a part as those of a batch of matrices.

    Attributes:
      batch: axes along which matrices lie, each orthogonalized on its own.
      rows: axes that together are the rows.
      columns: axes that together are the columns.
    """

    batch: tuple[int, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]

    def flatten(self, x: Shaped[Array, "..."]) -> Shaped[Array, "batch rows columns"]:
        """A part as a batch of matrices."""
        shape = [math.prod(x.shape[a] for a in axes) for axes in (self.batch, self.rows, self.columns)]
        return jnp.transpose(x, self._order).reshape(shape)

    def unflatten(self, x: Shaped[Array, "batch rows columns"], shape: tuple[int, ...]) -> Shaped[Array, "..."]:
        """The inverse of `flatten`: a part of this shape."""
        inverse = sorted(range(len(shape)), key=self._order.__getitem__)
        return jnp.transpose(x.reshape([shape[a] for a in self._order]), inverse)

    def shown(self, shape: tuple[int, ...]) -> str:
        """The sizes in words: `3 of 8 x 24`."""
        batch, rows, columns = (math.prod(shape[a] for a in axes) for axes in (self.batch, self.rows, self.columns))
        return f"{batch} of {rows} x {columns}" if self.batch else f"{rows} x {columns}"

    @property
    def _order(self) -> tuple[int, ...]:
        return (*self.batch, *self.rows, *self.columns)


@dataclasses.dataclass(frozen=True)
class LeafMatrices:
    """What one leaf is taken for.

    Attributes:
      leaf: its axes, and the parts into which they cut it.
      matrices: for each part the matrices in it, or None where Adam takes it.
      why: the reason, in words.
    """

    leaf: LeafSpec
    matrices: tuple[Matrix | None, ...]
    why: str

    @property
    def path(self) -> str:
        """The leaf's path."""
        return self.leaf.path

    @property
    def groups(self) -> tuple[tuple[Group, ...], ...]:
        """For each part the factors that belong to each axis of the leaf."""
        return tuple(groups_of(self.leaf))


# Why a leaf of two axes or more has no matrix.
SINGLE = "a single row or column"


def of_sides(part: Part, batch: Sequence[int], rows: Sequence[int], columns: Sequence[int]) -> Matrix | None:
    """The matrix, or None where a side is one entry long: that is a vector."""
    sides = [math.prod(part.shape[k] for k in axes) for axes in (rows, columns)]
    return Matrix(tuple(batch), tuple(rows), tuple(columns)) if min(sides) > 1 else None


def groups_of(leaf: LeafSpec) -> Iterator[tuple[Group, ...]]:
    """For each part the factors that belong to each axis of the leaf."""
    lengths = [
        [
            [len(factors_of(part)) for part in (factor.parts if isinstance(factor, Concat) else (factor,))]
            for factor in factors_of(axis)
        ]
        for axis in leaf.axes
    ]
    for chosen in itertools.product(*(choice for axis in lengths for choice in axis)):
        sizes, start, groups = iter(chosen), 0, []
        for axis in lengths:
            stop = start + sum(itertools.islice(sizes, len(axis)))
            groups.append(tuple(range(start, stop)))
            start = stop
        yield tuple(groups)
