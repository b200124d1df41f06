"""One leaf of a weight space: its axes, and the parts that they cut it into."""

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
class Part:
    """What `Concat` axes cut out of a leaf: every axis of it is a name or fixed.

    Attributes:
      path: the leaf's path, for a leaf of several parts with the number of the piece of each `Concat`, as in
        `"layer1/weight#0,2"`.
      factors: `(name, size)` of every axis of the part; the name `None` is fixed.
      start: where the part begins along each axis of the leaf in its `factored_shape`.
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
        """How long the part is along each axis of the leaf in its `factored_shape`."""
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
        return tuple(sum(map(_size, pieces)) for pieces in self._pieces)

    @functools.cached_property
    def parts(self) -> tuple[Part, ...]:
        """The parts into which the `Concat` axes cut the leaf, in row-major order; without those, only itself."""
        ends = [list(itertools.accumulate(map(_size, pieces))) for pieces in self._pieces]
        parts = []
        for numbers in itertools.product(*(range(len(pieces)) for pieces in self._pieces)):
            chosen = [pieces[n] for pieces, n in zip(self._pieces, numbers, strict=True)]
            stop = tuple(end[n] for end, n in zip(ends, numbers, strict=True))
            start = tuple(s - _size(piece) for s, piece in zip(stop, chosen, strict=True))
            label = ",".join(str(n) for pieces, n in zip(self._pieces, numbers, strict=True) if len(pieces) > 1)
            path = f"{self.path}#{label}" if label else self.path
            parts.append(Part(path, tuple(itertools.chain(*chosen)), start, stop))
        return tuple(parts)

    @functools.cached_property
    def _pieces(self) -> tuple[tuple[Factors, ...], ...]:
        """The pieces of each factor of each axis: one, but for a `Concat`."""
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


def split_parts(x: Shaped[ArrayLike, "..."], leaf: LeafSpec, leading: int = 0) -> list[Any]:
    """The parts of one leaf, in the order of `leaf.parts`.

    Args:
      x: an array `[*leading, *leaf.shape, *trailing]`.
      leaf: the spec of the leaf.
      leading: how many axes, such as one of channels, come before those of the leaf.

    Returns:
      An array `[*leading, *part.shape, *trailing]` for each part; numpy's where `x` is one.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_unf import Concat, make_spec
      >>> x = jnp.arange(5)
      >>> (leaf,) = make_spec((Concat("a", ("a", None)),), x, sizes={"a": 1}).leaves
      >>> split_parts(x, leaf)
      [Array([0], dtype=int32), Array([[1, 2, 3, 4]], dtype=int32)]
    """
    shape = jnp.shape(x)
    before, after = shape[:leading], shape[leading + len(leaf.shape) :]
    if len(leaf.parts) == 1:
        return [jnp.reshape(x, before + leaf.parts[0].shape + after)]
    x = jnp.reshape(x, before + leaf.factored_shape + after)
    whole = (slice(None),) * leading
    return [
        jnp.reshape(x[whole + tuple(map(slice, part.start, part.stop))], before + part.shape + after)
        for part in leaf.parts
    ]


def join_parts(parts: Sequence[Shaped[ArrayLike, "..."]], leaf: LeafSpec, leading: int = 0) -> Any:
    """The inverse of `split_parts`.

    Args:
      parts: an array `[*leading, *part.shape, *trailing]` for each of `leaf.parts`.
      leaf: the spec of the leaf.
      leading: how many axes come before those of the leaf.

    Returns:
      An array `[*leading, *leaf.shape, *trailing]`.
    """
    shape = jnp.shape(parts[0])
    before, after = shape[:leading], shape[leading + len(leaf.parts[0].shape) :]
    if len(parts) > 1:
        parts = [jnp.reshape(x, before + part.extent + after) for x, part in zip(parts, leaf.parts, strict=True)]
        # In row-major order, the pieces of the last factor are neighbours; once joined, those of the one before are.
        for axis, pieces in reversed(list(enumerate(leaf._pieces))):
            if len(pieces) > 1:
                runs = [parts[k : k + len(pieces)] for k in range(0, len(parts), len(pieces))]
                parts = [jnp.concatenate(run, leading + axis) for run in runs]
    return jnp.reshape(parts[0], before + leaf.shape + after)
