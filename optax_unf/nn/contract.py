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
from optax_unf.spec.leaf import Block, LeafSpec
from optax_unf.spec.permutation_spec import PermutationSpec

Signature: TypeAlias = tuple[int, ...]
Blocks: TypeAlias = tuple[tuple[int, ...], ...]

MAX_POSITIONS = 64


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A block of a leaf as the layers see it: the axes that permute, and the positions that do not.

    Attributes:
      path: the block's path, that of the leaf where it is the only one.
      names: per permuted axis, the index of its name in `spec.sizes`.
      sizes: their sizes.
      factors: sizes of all factors of the block's axes, in order.
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
    """Diagonals along `blocks`, of which those in `kept`, sorted by name, stay as axes; the rest is averaged away.

    The axes of the result are the kept blocks in the order of the leaf.
    """

    blocks: Blocks
    kept: tuple[int, ...]

    @property
    def order(self) -> tuple[int, ...]:
        """Which axis of the result each axis of the signature is."""
        return tuple(sorted(self.kept).index(b) for b in self.kept)


@dataclasses.dataclass(frozen=True)
class Expansion:
    """Axis `a` of the input goes to the block `attached[a]`; other blocks are broadcast.

    The result lies on the diagonal of each block with several axes, and is zero elsewhere.
    """

    blocks: Blocks
    attached: tuple[int, ...]


def tensors(spec: PermutationSpec, *, fixed_as_permuted: bool = False) -> tuple[Tensor, ...]:
    """The blocks of the leaves of a spec, their names numbered in the order of first occurrence.

    To the layers each block is a leaf: a leaf without `Concat` axes is its own only block.

    Args:
      spec: the permutation spec.
      fixed_as_permuted: treat each fixed axis as permuted by a name of its own instead of as positions. The maps
        are then equivariant to a larger group, and their number does not depend on the size of those axes.
    """
    numbers: dict[Name, int] = {name: number for number, name in enumerate(spec.sizes)}
    fresh = itertools.count(len(numbers))
    return tuple(
        _tensor(block, leaf, numbers, fresh if fixed_as_permuted else None)
        for leaf in spec.leaves
        for block in leaf.blocks
    )


def _tensor(block: Block, leaf: LeafSpec, numbers: Mapping[Name, int], fresh: Iterator[int] | None) -> Tensor:
    names, sizes, permuted = [], [], []
    for name, size in block.factors:
        permuted.append(name is not None or fresh is not None)
        if permuted[-1]:
            names.append(numbers[name] if name is not None else next(fresh))  # type: ignore[arg-type]
            sizes.append(size)
    tensor = Tensor(block.path, tuple(names), tuple(sizes), block.shape, tuple(permuted))
    if tensor.positions > MAX_POSITIONS:
        raise ValueError(
            f"Axes named None become channels, one group per position, and must have at most {MAX_POSITIONS} "
            f"positions together, but leaf {block.path!r} with axes {leaf.axes} has {tensor.positions}. Name the "
            f"large axis instead, and break its symmetry with optax_unf.nn.PositionalEncoding if its order matters."
        )
    return tensor


@functools.cache
def contractions(names: tuple[int, ...]) -> tuple[tuple[Contraction, Signature], ...]:
    """Every contraction of a leaf whose axes have these names, with its signature; larger results first."""
    found = []
    for blocks in partitions(names):
        order = sorted(range(len(blocks)), key=lambda b: (names[blocks[b][0]], b))
        for size in range(len(blocks), -1, -1):
            for kept in itertools.combinations(order, size):
                signature = tuple(names[blocks[b][0]] for b in kept)
                found.append((Contraction(blocks, kept), signature))
    return tuple(found)


@functools.cache
def expansions(names: tuple[int, ...], signature: Signature) -> tuple[Expansion, ...]:
    """Every expansion of a signature onto a leaf whose axes have these names."""
    if set(signature) - set(names):
        return ()
    found = []
    for blocks in partitions(names):
        block_names = [names[block[0]] for block in blocks]
        for attached in itertools.permutations(range(len(blocks)), len(signature)):
            if all(block_names[b] == name for b, name in zip(attached, signature, strict=True)):
                found.append(Expansion(blocks, attached))
    return tuple(found)


@functools.cache
def partitions(names: tuple[int, ...]) -> tuple[Blocks, ...]:
    """Partitions of the axes into blocks of one name each, the one without diagonals first."""
    return tuple(sorted(_partitions(names, 0, ()), key=lambda blocks: -len(blocks)))


def _partitions(names: tuple[int, ...], axis: int, blocks: Blocks) -> Iterator[Blocks]:
    if axis == len(names):
        yield blocks
        return
    for b, block in enumerate(blocks):
        if names[block[0]] == names[axis]:
            yield from _partitions(names, axis + 1, (*blocks[:b], (*block, axis), *blocks[b + 1 :]))
    yield from _partitions(names, axis + 1, (*blocks, (axis,)))


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
        blocks, kept = contraction.blocks, contraction.kept
        if len(kept) == len(blocks):
            done[contraction] = _diagonal(x, blocks)
        else:
            done[contraction] = mean_of_smallest(done, contraction)
    return list(done.values())


def mean_of_smallest(done: Mapping[Contraction, Array], contraction: Contraction) -> Float[Array, "channels *kept"]:
    """A contraction as a mean of the smallest of those done that have its axes."""
    blocks, kept = contraction.blocks, contraction.kept
    larger = min(
        (c for c in done if c.blocks == blocks and set(kept) < set(c.kept)),
        key=lambda c: (done[c].size, len(c.kept)),
    )
    return _mean(done[larger], tuple(axis + 1 for axis, b in enumerate(sorted(larger.kept)) if b not in kept))


def expand(
    y: Float[Array, "channels *kept"], expansion: Expansion, sizes: Sequence[int]
) -> Float[Array, "channels *broadcastable"]:
    """One expansion, with axes of size 1 where it is constant, so that sums of expansions broadcast late."""
    blocks, attached = expansion.blocks, expansion.attached
    y = jnp.transpose(y, (0, *(a + 1 for a in sorted(range(len(attached)), key=lambda a: blocks[attached[a]][0]))))
    first = {blocks[b][0] for b in attached}
    y = y.reshape(y.shape[0], *(size if axis in first else 1 for axis, size in enumerate(sizes)))
    for block in blocks:
        for axis in block[1:]:
            y = jnp.where(_is_diagonal(block[0], axis, sizes), y, jnp.zeros((), y.dtype))
    return y


def _is_diagonal(a: int, b: int, sizes: Sequence[int]) -> Array:
    def index(axis: int) -> Array:
        return jnp.arange(sizes[axis]).reshape([-1 if k == axis else 1 for k in range(len(sizes))])

    return index(a) == index(b)


def _diagonal(x: Array, blocks: Blocks) -> Array:
    """One axis per block, in the order of the blocks."""
    if all(len(block) == 1 for block in blocks):
        return x
    block_of = {axis: b for b, block in enumerate(blocks) for axis in block}
    grids = jnp.meshgrid(*(jnp.arange(x.shape[block[0] + 1]) for block in blocks), indexing="ij", sparse=True)
    return x[:, *(grids[block_of[axis]] for axis in range(x.ndim - 1))]


def _mean(x: Array, axes: tuple[int, ...]) -> Array:
    # A mean over nothing is 0, so that an empty leaf adds nothing to the others.
    return jnp.sum(x, axes) / max(math.prod(x.shape[axis] for axis in axes), 1)
