"""Which arrays are matrices: the pairs of axes along which a leaf, or a part of one, is orthogonalized."""

import dataclasses
import re

from jaxtyping import PyTree

from optax_unf._arguments import flatten_checked
from optax_unf.infer import Spec, resolved_for_part
from optax_unf.nominal.by_spec import matrices_of_spec
from optax_unf.nominal.matrix import SINGLE, VECTORS, LeafMatrices, of_sides
from optax_unf.spec.leaf import LeafSpec
from optax_unf.spec.make_spec import make_spec
from optax_unf.spec.paths import natural_order
from optax_unf.spec.permutation_spec import PermutationSpec

_PROJECTIONS = re.compile(r"(^|/)(query|key|value)/", re.IGNORECASE)


def find_matrices(
    params: PyTree, spec: Spec = None, *, heads: bool = False, adam: str | None = None
) -> tuple[LeafMatrices, ...]:
    """Which leaves, and which parts of them, are matrices.

    Args:
      params: the parameters, or a part of them; only shapes are read.
      spec: a `PermutationSpec`, nested tuples of names, `Inferred`, or a function of the parameters that returns one.
        Without one, by the conventions of flax and haiku: two axes are a matrix, but for biases, scales and
        positions; of more axes the last is the output, but for the kernels of queries, keys and values,
        `[model, heads, size]`. With one, a matrix is a pair of permuted axes, or of a permuted and a data axis, in
        each part of concatenated axes; experts and scanned layers are batches, heads and their size are one side;
        fixed positions of a convolution belong to its inputs.
      heads: whether each head of a product axis is a matrix of its own.
      adam: a regular expression; leaves whose path it is found in are left to Adam.

    Returns:
      An entry for each leaf, sorted by path.

    Raises:
      ValueError, TypeError: the spec does not fit the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_unf import Concat
      >>> params = {"qkv": jnp.zeros((8, 24))}
      >>> (found,) = find_matrices(params, {"qkv": ("in", Concat("h", "h", "h"))})
      >>> len(found.matrices)
      3
    """
    if spec is None:
        found = [_by_convention(leaf, heads) for leaf in make_spec(None, params).leaves]
    else:
        found = matrices_of_spec(_space(spec, params), heads)
    return tuple(_without(adam, leaf) for leaf in sorted(found, key=lambda found: natural_order(found.path)))


def _space(spec: Spec, params: PyTree) -> PermutationSpec:
    space = resolved_for_part(spec, params)
    flatten_checked(space, params, "parameters")
    return space


def _without(adam: str | None, found: LeafMatrices) -> LeafMatrices:
    if adam is None or not re.search(adam, found.path):
        return found
    return LeafMatrices(found.leaf, (None,) * len(found.matrices), f"its path has {adam!r}")


def _by_convention(leaf: LeafSpec, heads: bool) -> LeafMatrices:
    """Without a spec: by the leaf's path and shape."""
    rank = len(leaf.shape)
    if rank < 2:
        return LeafMatrices(leaf, (None,), "fewer than two axes")
    if VECTORS.search(leaf.path):
        return LeafMatrices(leaf, (None,), "a bias, scale or position by its name")
    if rank == 3 and _PROJECTIONS.search(leaf.path):
        sides = ((1,), (0,), (2,)) if heads else ((), (0,), (1, 2))
        matrix = of_sides(leaf.parts[0], *sides)
        return LeafMatrices(leaf, (matrix,), "a projection to heads by its name")
    if rank > 2 and leaf.shape[-2] == 1:
        return LeafMatrices(leaf, (None,), "one axis of neurons only")
    matrix = of_sides(leaf.parts[0], (), range(rank - 1), (rank - 1,))
    return LeafMatrices(leaf, (matrix,), "the last axis out, the others in" if matrix else SINGLE)


@dataclasses.dataclass(frozen=True)
class MatrixTable:
    """What an optimizer takes for a matrix; `print` shows it leaf by leaf.

    Attributes:
      leaves: an entry for each leaf, sorted by path.
    """

    leaves: tuple[LeafMatrices, ...]

    def __str__(self) -> str:
        rows = [("leaf", "shape", "taken for", "because")]
        rows += [(x.path or "(bare array)", str(x.leaf.shape), _shown(x), x.why) for x in self.leaves]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        return "\n".join("  ".join([*(f"{c:<{w}}" for c, w in zip(row, widths, strict=False)), row[3]]) for row in rows)


def describe_matrices(
    params: PyTree, spec: Spec = None, *, heads: bool = False, adam: str | None = None
) -> MatrixTable:
    """A table of which leaves, and which parts of them, are matrices: see `find_matrices`.

    Example:
      >>> import jax.numpy as jnp
      >>> print(describe_matrices({"w": jnp.zeros((3, 2)), "b": jnp.zeros(2)}))
      leaf  shape   taken for  because
      b     (2,)    Adam       fewer than two axes
      w     (3, 2)  3 x 2      the last axis out, the others in
    """
    return MatrixTable(find_matrices(params, spec, heads=heads, adam=adam))


def _shown(found: LeafMatrices) -> str:
    parts = [
        "Adam" if matrix is None else matrix.shown(part.shape)
        for matrix, part in zip(found.matrices, found.leaf.parts, strict=True)
    ]
    runs = [(part, parts.count(part)) for part in dict.fromkeys(parts)]
    return " and ".join(f"{n} parts {part}" if n > 1 else part for part, n in runs)
