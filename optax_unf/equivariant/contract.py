"""Contract and expand: the two factors of every equivariant basis term.

A basis term of Algorithm 1 takes diagonals of the input, averages some axes away, and places what is left on
diagonals of the output. Split in the middle, that is a contraction of the input leaf and an expansion onto the
output leaf, which meet in a *signature*: the sorted names of the axes in between. A pair with equal signatures
is exactly one valid partition (Definition 1), so N leaves need O(N) contractions and expansions, not O(N^2)
basis terms.

Arrays here are channels-first, `[channels, *axes]`: contiguous axes make reductions and products fast.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Float

from optax_unf.spec.axes import Name
from optax_unf.spec.leaf import LeafSpec, Part
from optax_unf.spec.permutation_spec import PermutationSpec

Signature: TypeAlias = tuple[int, ...]
Diagonals: TypeAlias = tuple[tuple[int, ...], ...]

MAX_POSITIONS = 64


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A part of a leaf as the layers see it: the axes that permute, and the positions that do not.

    Attributes:
      path: the part's path, that of the leaf where it is the only one.
      names: per permuted axis, the index of its name in `spec.sizes`.
      sizes: their sizes.
      factors: sizes of all factors of the part's axes, in order.
      permuted: which of the factors permute.
    """

    path: str
    names: tuple[int, ...]
    sizes: tuple[int, ...]
    factors: tuple[int, ...]
    permuted: tuple[bool, ...]

    @property
    def positions(self) -> int:
        """How many fixed positions there are: each is a group of channels."""
        return math.prod(size for size, p in zip(self.factors, self.permuted, strict=True) if not p)


@dataclasses.dataclass(frozen=True)
class Contraction:
    """`diagonals` are taken, of which those in `kept`, sorted by name, stay as axes; the rest is averaged away.

    The axes of the result are the kept diagonals in the order of the leaf.
    """

    diagonals: Diagonals
    kept: tuple[int, ...]

    @property
    def order(self) -> tuple[int, ...]:
        """Which axis of the result each axis of the signature is."""
        return tuple(sorted(self.kept).index(b) for b in self.kept)


@dataclasses.dataclass(frozen=True)
class Expansion:
    """Axis `a` of the input goes to the diagonal `attached[a]`; along the others, the result is constant.

    The result is zero off the diagonals that have several axes.
    """

    diagonals: Diagonals
    attached: tuple[int, ...]


def tensors(spec: PermutationSpec, *, fixed_as_permuted: bool = False) -> tuple[Tensor, ...]:
    """The parts of the leaves of a spec, their names numbered in the order of first occurrence.

    To the layers each part is a leaf: a leaf without `Concat` axes is its own only part.

    Args:
      spec: the permutation spec.
      fixed_as_permuted: treat each fixed axis as permuted by a name of its own instead of as positions. The maps
        are then equivariant to a larger group, and their number does not depend on the size of those axes.
    """
    numbers: dict[Name, int] = {name: number for number, name in enumerate(spec.sizes)}
    fresh = itertools.count(len(numbers))
    return tuple(
        _tensor(part, leaf, numbers, fresh if fixed_as_permuted else None)
        for leaf in spec.leaves
        for part in leaf.parts
    )


def _tensor(part: Part, leaf: LeafSpec, numbers: Mapping[Name, int], fresh: Iterator[int] | None) -> Tensor:
    names, sizes, permuted = [], [], []
    for name, size in part.factors:
        permuted.append(name is not None or fresh is not None)
        if permuted[-1]:
            names.append(numbers[name] if name is not None else next(fresh))  # type: ignore[arg-type]
            sizes.append(size)
    tensor = Tensor(part.path, tuple(names), tuple(sizes), part.shape, tuple(permuted))
    if tensor.positions > MAX_POSITIONS:
        raise ValueError(
            f"Axes named None become channels, one group per position, and must have at most {MAX_POSITIONS} "
            f"positions together, but leaf {part.path!r} with axes {leaf.axes} has {tensor.positions}. Name the "
            f"large axis instead, and break its symmetry with optax_unf.nn.PositionalEncoding if its order matters."
        )
    return tensor


@functools.cache
def contractions(names: tuple[int, ...]) -> tuple[tuple[Contraction, Signature], ...]:
    """Every contraction of a leaf whose axes have these names, with its signature; larger results first."""
    found = []
    for diagonals in partitions(names):
        order = sorted(range(len(diagonals)), key=lambda b: (names[diagonals[b][0]], b))
        for size in range(len(diagonals), -1, -1):
            for kept in itertools.combinations(order, size):
                signature = tuple(names[diagonals[b][0]] for b in kept)
                found.append((Contraction(diagonals, kept), signature))
    return tuple(found)


@functools.cache
def expansions(names: tuple[int, ...], signature: Signature) -> tuple[Expansion, ...]:
    """Every expansion of a signature onto a leaf whose axes have these names."""
    if set(signature) - set(names):
        return ()
    found = []
    for diagonals in partitions(names):
        names_of = [names[diagonal[0]] for diagonal in diagonals]
        for attached in itertools.permutations(range(len(diagonals)), len(signature)):
            if all(names_of[b] == name for b, name in zip(attached, signature, strict=True)):
                found.append(Expansion(diagonals, attached))
    return tuple(found)


@functools.cache
def partitions(names: tuple[int, ...]) -> tuple[Diagonals, ...]:
    """Partitions of the axes into diagonals of one name each, the one without diagonals first."""
    return tuple(sorted(_partitions(names, 0, ()), key=lambda diagonals: -len(diagonals)))


def _partitions(names: tuple[int, ...], axis: int, diagonals: Diagonals) -> Iterator[Diagonals]:
    if axis == len(names):
        yield diagonals
        return
    for b, diagonal in enumerate(diagonals):
        if names[diagonal[0]] == names[axis]:
            yield from _partitions(names, axis + 1, (*diagonals[:b], (*diagonal, axis), *diagonals[b + 1 :]))
    yield from _partitions(names, axis + 1, (*diagonals, (axis,)))


def positions_to_channels(x: Float[Array, "channels *factors"], tensor: Tensor) -> Float[Array, "c *sizes"]:
    """Moves fixed axes into the channels."""
    fixed = [axis + 1 for axis, permuted in enumerate(tensor.permuted) if not permuted]
    x = jnp.moveaxis(x, fixed, range(1, len(fixed) + 1))
    return x.reshape(x.shape[0] * tensor.positions, *tensor.sizes)


def channels_to_positions(
    y: Float[Array, "c *sizes"], tensor: Tensor, channels: int
) -> Float[Array, "channels *factors"]:
    """The inverse of `positions_to_channels`."""
    fixed = [axis + 1 for axis, permuted in enumerate(tensor.permuted) if not permuted]
    y = y.reshape(channels, *(tensor.factors[axis - 1] for axis in fixed), *tensor.sizes)
    return jnp.moveaxis(y, range(1, len(fixed) + 1), fixed)


def contract(x: Float[Array, "channels *sizes"], names: tuple[int, ...]) -> list[Float[Array, "channels ..."]]:
    """All contractions of one leaf, in the order of `contractions(names)`.

    Each mean is taken of the smallest contraction computed so far that still has its axes.
    """
    done: dict[Contraction, Array] = {}
    for contraction, _ in contractions(names):
        diagonals, kept = contraction.diagonals, contraction.kept
        if len(kept) == len(diagonals):
            done[contraction] = _diagonal(x, diagonals)
        else:
            done[contraction] = mean_of_smallest(done, contraction)
    return list(done.values())


def mean_of_smallest(done: Mapping[Contraction, Array], contraction: Contraction) -> Float[Array, "channels *kept"]:
    """A contraction as a mean of the smallest of those done that have its axes."""
    diagonals, kept = contraction.diagonals, contraction.kept
    larger = min(
        (c for c in done if c.diagonals == diagonals and set(kept) < set(c.kept)),
        key=lambda c: (done[c].size, len(c.kept)),
    )
    return _mean(done[larger], tuple(axis + 1 for axis, b in enumerate(sorted(larger.kept)) if b not in kept))


def expand(
    y: Float[Array, "channels *kept"], expansion: Expansion, sizes: Sequence[int]
) -> Float[Array, "channels *broadcastable"]:
    """One expansion, with axes of size 1 where it is constant, so that sums of expansions broadcast late."""
    diagonals, attached = expansion.diagonals, expansion.attached
    y = jnp.transpose(y, (0, *(a + 1 for a in sorted(range(len(attached)), key=lambda a: diagonals[attached[a]][0]))))
    first = {diagonals[b][0] for b in attached}
    y = y.reshape(y.shape[0], *(size if axis in first else 1 for axis, size in enumerate(sizes)))
    for diagonal in diagonals:
        for axis in diagonal[1:]:
            y = jnp.where(_is_diagonal(diagonal[0], axis, sizes), y, jnp.zeros((), y.dtype))
    return y


def _is_diagonal(a: int, b: int, sizes: Sequence[int]) -> Array:
    def index(axis: int) -> Array:
        return jnp.arange(sizes[axis]).reshape([-1 if k == axis else 1 for k in range(len(sizes))])

    return index(a) == index(b)


def _diagonal(x: Array, diagonals: Diagonals) -> Array:
    """One axis per diagonal, in the order of the diagonals."""
    if all(len(diagonal) == 1 for diagonal in diagonals):
        return x
    diagonal_of = {axis: b for b, diagonal in enumerate(diagonals) for axis in diagonal}
    grids = jnp.meshgrid(*(jnp.arange(x.shape[diagonal[0] + 1]) for diagonal in diagonals), indexing="ij", sparse=True)
    return x[:, *(grids[diagonal_of[axis]] for axis in range(x.ndim - 1))]


def _mean(x: Array, axes: tuple[int, ...]) -> Array:
    # A mean over nothing is 0, so that an empty leaf adds nothing to the others.
    return jnp.sum(x, axes) / max(math.prod(x.shape[axis] for axis in axes), 1)
