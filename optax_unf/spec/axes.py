"""What an axis of a leaf is: a name, fixed, a product of those, or a concatenation of parts."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np

Name: TypeAlias = str | int


@dataclasses.dataclass(frozen=True, repr=False)
class Fixed:
    """A part of an axis that is not permuted, as `None`, with its size stated.

    Needed where the sizes of several fixed parts of one axis do not follow from the axis' size.

    Attributes:
      size: the number of positions.

    Raises:
      ValueError: the size is not a natural number.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_unf import make_spec
      >>> make_spec({"w": ((Fixed(3), "c", Fixed(2)),)}, {"w": jnp.zeros(24)}).sizes
      {'c': 4}
    """

    size: int

    def __post_init__(self) -> None:
        if isinstance(self.size, bool) or not isinstance(self.size, int | np.integer) or self.size < 0:
            raise ValueError(f"Fixed must have a size, a natural number, but has {self.size!r}.")
        object.__setattr__(self, "size", int(self.size))

    def __repr__(self) -> str:
        return f"Fixed({self.size})"


@dataclasses.dataclass(frozen=True, init=False, repr=False)
class Concat:
    """An axis, or a factor of one, that is the concatenation of parts, each permuted within itself.

    The input axis of a layer that reads two others side by side, `Concat("encoder", "decoder")`, or the output axis of
    fused projections, `Concat(("h", "qk"), ("h", "qk"), ("h", "v"))`.

    Attributes:
      parts: each a name, `None`, `Fixed(size)`, or a product of those as a tuple.

    Raises:
      ValueError: there are no parts.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_unf import make_spec
      >>> params = {"w": jnp.zeros((5, 2)), "b": jnp.zeros(3)}
      >>> make_spec({"w": (Concat("skip", "hidden"), "out"), "b": ("hidden",)}, params).sizes
      {'hidden': 3, 'skip': 2, 'out': 2}
    """

    parts: tuple[Any, ...]

    def __init__(self, *parts: "Name | Fixed | tuple[Name | Fixed | None, ...] | None") -> None:
        if not parts:
            raise ValueError("Concat must have parts, but has none. Write Concat('a', 'b').")
        object.__setattr__(self, "parts", parts)

    def __repr__(self) -> str:
        return f"Concat({', '.join(map(repr, self.parts))})"


Axis: TypeAlias = Name | Fixed | Concat | tuple[Name | Fixed | Concat | None, ...] | None
Axes: TypeAlias = tuple[Axis, ...]


def factors_of(axis: Axis) -> tuple[Name | Fixed | Concat | None, ...]:
    """The factors of an axis: several for a product."""
    return axis if isinstance(axis, tuple) else (axis,)


def atoms_of(axis: Axis) -> Iterator[Name | Fixed | None]:
    """The names and fixed parts in an axis, as they are written from left to right."""
    for factor in factors_of(axis):
        if isinstance(factor, Concat):
            for part in factor.parts:
                yield from atoms_of(part)
        else:
            yield factor


def names_of(axis: Axis) -> tuple[Name, ...]:
    """The distinct names in an axis, in the order of first occurrence."""
    return tuple(dict.fromkeys(atom for atom in atoms_of(axis) if isinstance(atom, str | int)))


def size_of(axis: Axis, sizes: Mapping[Name | None, int]) -> int:
    """The size of an axis from those of its names and of `None`."""
    if isinstance(axis, Concat):
        return sum(size_of(part, sizes) for part in axis.parts)
    if isinstance(axis, tuple):
        return math.prod(size_of(factor, sizes) for factor in axis)
    return axis.size if isinstance(axis, Fixed) else sizes[axis]


def map_atoms(function: Callable[[Any], Any], axis: Axis) -> Axis:
    """The axis with each name and fixed part replaced by the function's value."""
    if isinstance(axis, Concat):
        return Concat(*(map_atoms(function, part) for part in axis.parts))  # type: ignore[arg-type]
    if isinstance(axis, tuple):
        return tuple(map_atoms(function, factor) for factor in axis)  # type: ignore[misc]
    return function(axis)


def merge_fixed(axis: Axis) -> Axis:
    """The shortest way to write an axis whose fixed parts all have sizes.

    Neighbouring fixed parts are one; a concatenation of one part is that part, a product of one factor that factor.
    """
    if isinstance(axis, Concat):
        parts = _merged((merge_fixed(part) for part in axis.parts), lambda a, b: a + b)
        return parts[0] if len(parts) == 1 else Concat(*parts)
    if isinstance(axis, tuple):
        factors = _merged((f for factor in axis for f in factors_of(merge_fixed(factor))), lambda a, b: a * b)
        return factors[0] if len(factors) == 1 else tuple(factors)
    return axis


def _merged(items: Iterator[Any], combine: Callable[[int, int], int]) -> list[Any]:
    merged: list[Any] = []
    for item in items:
        if merged and isinstance(item, Fixed) and isinstance(merged[-1], Fixed):
            merged[-1] = Fixed(combine(merged[-1].size, item.size))
        else:
            merged.append(item)
    return merged
