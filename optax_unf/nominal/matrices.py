"""Which arrays are matrices: the pairs of axes along which a leaf, or a part of one, is orthogonalized."""

import dataclasses
import math
import re

import jax.numpy as jnp
from jaxtyping import Array, PyTree, Shaped

from optax_unf.leaf import Block, LeafSpec
from optax_unf.optimizer import Spec
from optax_unf.paths import natural_order
from optax_unf.read_spec import make_spec

# Keys of flax and haiku for leaves that are no matrices, whatever their rank.
_VECTORS = re.compile(r"bias|scale|pos|(^|/)(b|offset|cls|cls_token)$", re.IGNORECASE)
_PROJECTIONS = re.compile(r"(^|/)(query|key|value)/", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Matrix:
    """The axes of a block as those of a batch of matrices.

    Attributes:
      batch: axes along which matrices lie, each orthogonalized on its own.
      rows: axes that together are the rows.
      columns: axes that together are the columns.
    """

    batch: tuple[int, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]

    def flatten(self, x: Shaped[Array, "..."]) -> Shaped[Array, "batch rows columns"]:
        """A block as a batch of matrices."""
        shape = [math.prod(x.shape[a] for a in axes) for axes in (self.batch, self.rows, self.columns)]
        return jnp.transpose(x, self._order).reshape(shape)

    def unflatten(self, x: Shaped[Array, "batch rows columns"], shape: tuple[int, ...]) -> Shaped[Array, "..."]:
        """The inverse of `flatten`: a block of this shape."""
        inverse = sorted(range(len(shape)), key=self._order.__getitem__)
        return jnp.transpose(x.reshape([shape[a] for a in self._order]), inverse)

    @property
    def _order(self) -> tuple[int, ...]:
        return (*self.batch, *self.rows, *self.columns)


@dataclasses.dataclass(frozen=True)
class LeafMatrices:
    """What one leaf is taken for.

    Attributes:
      leaf: its axes, and the blocks into which they cut it.
      matrices: for each block the matrices in it, or None where Adam takes it.
      why: the reason, in words.
    """

    leaf: LeafSpec
    matrices: tuple[Matrix | None, ...]
    why: str

    @property
    def path(self) -> str:
        """The leaf's path."""
        return self.leaf.path


def find_matrices(
    params: PyTree, spec: Spec = None, *, heads: bool = False, adam: str | None = None
) -> tuple[LeafMatrices, ...]:
    """Which leaves, and which parts of them, are matrices.

    Args:
      params: the parameters, or a part of them; only shapes are read.
      spec: a `PermutationSpec`, nested tuples of names, or `Inferred`. Without one, by the conventions of flax and
        haiku: two axes are a matrix, but for biases, scales and positions; of more axes the last is the output, but
        for the kernels of queries, keys and values, `[model, heads, size]`.
      heads: whether each head of a product axis is a matrix of its own.
      adam: a regular expression; leaves whose path it is found in are left to Adam.

    Returns:
      An entry for each leaf, sorted by path.
    """
    found = [_by_convention(leaf, heads) for leaf in make_spec(None, params).leaves]
    return tuple(_without(adam, leaf) for leaf in sorted(found, key=lambda found: natural_order(found.path)))


def _without(adam: str | None, found: LeafMatrices) -> LeafMatrices:
    if adam is None or not re.search(adam, found.path):
        return found
    return LeafMatrices(found.leaf, (None,) * len(found.matrices), f"its path has {adam!r}")


def _by_convention(leaf: LeafSpec, heads: bool) -> LeafMatrices:
    """Without a spec: by the leaf's path and shape."""
    rank = len(leaf.shape)
    if rank < 2:
        return LeafMatrices(leaf, (None,), "fewer than two axes")
    if _VECTORS.search(leaf.path):
        return LeafMatrices(leaf, (None,), "a bias, scale or position by its name")
    if rank == 3 and _PROJECTIONS.search(leaf.path):
        matrix = Matrix((1,), (0,), (2,)) if heads else Matrix((), (0,), (1, 2))
        return LeafMatrices(leaf, (_if_sides(matrix, leaf.blocks[0]),), "a projection to heads by its name")
    if rank > 2 and leaf.shape[-2] == 1:
        return LeafMatrices(leaf, (None,), "one axis of neurons only")
    matrix = Matrix((), tuple(range(rank - 1)), (rank - 1,))
    return LeafMatrices(leaf, (_if_sides(matrix, leaf.blocks[0]),), "the last axis out, the others in")


def _if_sides(matrix: Matrix, block: Block) -> Matrix | None:
    """The matrix, or None where a side is one entry long: that is a vector."""
    sides = [math.prod(block.shape[a] for a in axes) for axes in (matrix.rows, matrix.columns)]
    return matrix if min(sides) > 1 else None
