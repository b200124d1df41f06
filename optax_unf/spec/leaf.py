"""One leaf of a weight space: its axes, and the blocks that they cut it into."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import jax.numpy as jnp
from jaxtyping import ArrayLike, Shaped

from optax_unf.spec.axes import Axes, Concat, Name, factors_of

Factors: TypeAlias = tuple[tuple[Name | None, int], ...]


@dataclasses.dataclass(frozen=True)
class Block:
    """A part of a leaf in which every axis is a name or fixed: an ordinary tensor.

    Attributes:
      path: the leaf's path, for a leaf of several blocks with the number of the part of each `Concat`, as in
        `"layer1/weight#0,2"`.
      factors: `(name, size)` of every axis of the block; the name `None` is fixed.
      start: where the block begins along each axis of the leaf in its `factored_shape`.
      stop: where it ends.
    """

    path: str
    factors: Factors
    start: tuple[int, ...]
    stop: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The size of every factor."""
        return tuple(size for _, size in self.factors)

    @property
    def extent(self) -> tuple[int, ...]:
        """How long the block is along each axis of the leaf in its `factored_shape`."""
        return tuple(stop - start for start, stop in zip(self.start, self.stop, strict=True))


@dataclasses.dataclass(frozen=True)
class LeafSpec:
    """The axes of one leaf of a weight space.

    `make_spec` writes axes that mean the same alike: `Fixed` stands only where the size does not follow from the
    others, neighbouring fixed parts are one, and there is no `Concat` of one part.

    Attributes:
      path: where the leaf is in the parameter tree, as in `"layer1/weight"`.
      shape: the leaf's shape.
      axes: one entry per axis: a name, `None` or `Fixed(size)` (not permuted), a `Concat` of parts, or a tuple of those
        for an axis that is the product of several (row-major, as `reshape` splits it).
      factors: `(name, size)` of everything named or fixed in the axes, as they are written from left to right. Without
        a `Concat` these are the factors into which `reshape` splits the leaf.
    """

    path: str
    shape: tuple[int, ...]
    axes: Axes
    factors: Factors

    @functools.cached_property
    def factored_shape(self) -> tuple[int, ...]:
        """The shape after every product axis is split into its factors."""
        return tuple(sum(map(_size, parts)) for parts in self._parts)

    @functools.cached_property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks into which the `Concat` axes cut the leaf, in row-major order; without those, only itself."""
        ends = [list(itertools.accumulate(map(_size, parts))) for parts in self._parts]
        blocks = []
        for numbers in itertools.product(*(range(len(parts)) for parts in self._parts)):
            chosen = [parts[n] for parts, n in zip(self._parts, numbers, strict=True)]
            stop = tuple(end[n] for end, n in zip(ends, numbers, strict=True))
            start = tuple(s - _size(part) for s, part in zip(stop, chosen, strict=True))
            label = ",".join(str(n) for parts, n in zip(self._parts, numbers, strict=True) if len(parts) > 1)
            path = f"{self.path}#{label}" if label else self.path
            blocks.append(Block(path, tuple(itertools.chain(*chosen)), start, stop))
        return tuple(blocks)

    @functools.cached_property
    def _parts(self) -> tuple[tuple[Factors, ...], ...]:
        """The parts of each factor of each axis: one, but for a `Concat`."""
        sized = iter(self.factors)
        return tuple(
            tuple(
                tuple(itertools.islice(sized, len(factors_of(part))))
                for part in (factor.parts if isinstance(factor, Concat) else (factor,))
            )
            for axis in self.axes
            for factor in factors_of(axis)
        )


def _size(factors: Factors) -> int:
    return math.prod(size for _, size in factors)


def split_blocks(x: Shaped[ArrayLike, "..."], leaf: LeafSpec, leading: int = 0) -> list[Any]:
    """The blocks of one leaf, in the order of `leaf.blocks`.

    Args:
      x: an array `[*leading, *leaf.shape, *trailing]`.
      leaf: the spec of the leaf.
      leading: how many axes, such as one of channels, come before those of the leaf.

    Returns:
      An array `[*leading, *block.shape, *trailing]` for each block; numpy's where `x` is one.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_unf import Concat, make_spec
      >>> x = jnp.arange(5)
      >>> (leaf,) = make_spec((Concat("a", ("a", None)),), x, sizes={"a": 1}).leaves
      >>> split_blocks(x, leaf)
      [Array([0], dtype=int32), Array([[1, 2, 3, 4]], dtype=int32)]
    """
    shape = jnp.shape(x)
    before, after = shape[:leading], shape[leading + len(leaf.shape) :]
    if len(leaf.blocks) == 1:
        return [jnp.reshape(x, before + leaf.blocks[0].shape + after)]
    x = jnp.reshape(x, before + leaf.factored_shape + after)
    whole = (slice(None),) * leading
    return [
        jnp.reshape(x[whole + tuple(map(slice, block.start, block.stop))], before + block.shape + after)
        for block in leaf.blocks
    ]


def join_blocks(blocks: Sequence[Shaped[ArrayLike, "..."]], leaf: LeafSpec, leading: int = 0) -> Any:
    """The inverse of `split_blocks`.

    Args:
      blocks: an array `[*leading, *block.shape, *trailing]` for each of `leaf.blocks`.
      leaf: the spec of the leaf.
      leading: how many axes come before those of the leaf.

    Returns:
      An array `[*leading, *leaf.shape, *trailing]`.
    """
    shape = jnp.shape(blocks[0])
    before, after = shape[:leading], shape[leading + len(leaf.blocks[0].shape) :]
    if len(blocks) > 1:
        blocks = [
            jnp.reshape(x, before + tuple(b - a for a, b in zip(block.start, block.stop, strict=True)) + after)
            for x, block in zip(blocks, leaf.blocks, strict=True)
        ]
        # In row-major order, the parts of the last factor are neighbours; once joined, those of the one before are.
        for axis, parts in reversed(list(enumerate(leaf._parts))):
            if len(parts) > 1:
                runs = [blocks[k : k + len(parts)] for k in range(0, len(blocks), len(parts))]
                blocks = [jnp.concatenate(run, leading + axis) for run in runs]
    return jnp.reshape(blocks[0], before + leaf.shape + after)
