"""What is known about an array while a function is followed."""

import dataclasses
from typing import TypeAlias

import numpy as np

from optax_unf.infer import generic
from optax_unf.infer.generic import Generic
from optax_unf.infer.terms import Atom, Term, Uniform, fix


@dataclasses.dataclass(frozen=True)
class Given:
    """Computed from the arguments alone: integers among them may index what the data orders, such as a vocabulary."""


@dataclasses.dataclass(frozen=True)
class Along:
    """Integers that count the positions along one of the array's own axes, as `iota` makes them."""

    axis: int


@dataclasses.dataclass(frozen=True)
class IndexOf:
    """Integers that are positions in an axis with this term, and move with it, as `argmax` makes them."""

    term: Term


@dataclasses.dataclass(frozen=True)
class Columns:
    """Index vectors along the last axis, whose entries have these meanings."""

    meanings: tuple["Meaning | None", ...]


@dataclasses.dataclass(frozen=True)
class Shifted:
    """Integers with a meaning, plus a constant: how `jax.numpy` wraps indices that may be negative."""

    meaning: "Meaning"


@dataclasses.dataclass(frozen=True)
class Never:
    """False everywhere."""


Meaning: TypeAlias = Given | Along | IndexOf | Columns | Shifted | Never


@dataclasses.dataclass(frozen=True)
class Value:
    """An array whose content moves with the permutations of the parameters.

    Attributes:
      axes: a term per axis.
      meaning: what its integers refer to, if that is known.
      constant: the value itself, where it is small and known.
      generic: what is almost surely true of its entries, if that is needed and known.
    """

    axes: tuple[Term, ...]
    meaning: Meaning | None = None
    constant: np.ndarray | None = None
    generic: Generic | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's shape."""
        return tuple(term.size for term in self.axes)


def scattered(shape: tuple[int, ...], *reasons: str) -> tuple[Term, ...]:
    """Axes with a new atom each, that may not move for these reasons."""
    return tuple(Atom(size, *reasons) if size > 1 else Uniform(size) for size in shape)


def constant_value(array: np.ndarray) -> Value:
    """A known array: it is uniform along the axes that it does not vary on, and ordered along the others."""
    shape = array.shape
    axes = []
    for axis, size in enumerate(shape):
        same = array.size == 0 or bool((array == array.take([0], axis)).all())
        axes.append(Uniform(size) if size < 2 or same else Atom(size, "constant"))
    small = array.size <= 64
    return Value(tuple(axes), constant=array if small else None, generic=None if small else generic.constant(array))


def index_terms(meaning: Meaning | None) -> tuple[Term, ...]:
    """The terms whose positions the integers are: these change whenever the terms move."""
    if isinstance(meaning, IndexOf):
        return (meaning.term,)
    if isinstance(meaning, Shifted):
        return index_terms(meaning.meaning)
    if isinstance(meaning, Columns):
        return tuple(term for column in meaning.meanings for term in index_terms(column))
    return ()


def plain(value: Value) -> Value:
    """The value as mere numbers: what its integers are positions in may no longer move."""
    for term in index_terms(value.meaning):
        fix(term, "order")
    return Value(value.axes, value.meaning if isinstance(value.meaning, Given) else None, generic=value.generic)


def constant_generic(value: Value) -> Generic | None:
    """What is almost surely true of the entries of a value that may be known itself."""
    return value.generic if value.constant is None else generic.constant(value.constant)
