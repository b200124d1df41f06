"""What is almost surely true of a value's entries, so that an argmax among them has no ties.

Almost surely means: for all parameters but a set of measure zero. Functions are piecewise analytic, so each statement
is one about every piece. A router's logits `x @ w` are distinct because each depends on a column of `w` of its own, and
because `x`, which does not depend on `w`, is not zero; after a ReLU it may be. Nothing is assumed of values about which
no rule says anything.

Leaves of the parameters are numbered, and sets of them are integers with a bit for each.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import TypeAlias

import numpy as np

# Which slices of a leaf the positions of an axis depend on: the leaf, its axis, and how that was cut since. Positions
# with one label have slices without a common entry.
Label: TypeAlias = tuple[int | str | tuple[int, ...], ...]

_MAX_DEGREE = 4


@dataclasses.dataclass(frozen=True)
class Degrees:
    """Into which homogeneous functions a value falls, leaf by leaf.

    A value is a sum of functions f with f(t * leaf) = t^d f(leaf), near t = 1. Those of different degrees are linearly
    independent, so that they cannot cancel.

    Attributes:
      leaves: by degree, the leaves in which it may occur; a leaf that the value does not depend on has degree 0.
      unknown: the leaves in which there may be any functions.
    """

    leaves: Mapping[int, int] = dataclasses.field(default_factory=dict)
    unknown: int = 0

    def __or__(self, other: "Degrees") -> "Degrees":
        degrees = {*self.leaves, *other.leaves}
        return Degrees({d: self.only(d) | other.only(d) for d in degrees}, self.unknown | other.unknown)

    def __mul__(self, other: "Degrees") -> "Degrees":
        leaves: dict[int, int] = {}
        unknown = self.unknown | other.unknown
        for d, some in self.leaves.items():
            for e, more in other.leaves.items():
                if abs(d + e) <= _MAX_DEGREE:
                    leaves[d + e] = leaves.get(d + e, 0) | (some & more)
                else:
                    unknown |= some & more
        return Degrees(leaves, unknown)

    def only(self, degree: int) -> int:
        """The leaves in which this degree may occur."""
        return self.leaves.get(degree, 0)

    def apart(self, other: "Degrees", among: int) -> int:
        """Those of some leaves in which the two values have no degree in common."""
        among &= ~(self.unknown | other.unknown)
        for degree, leaves in self.leaves.items():
            among &= ~(leaves & other.only(degree))
        return among

    def power(self, numerator: int, denominator: int, deps: int) -> "Degrees":
        """The degrees of a power; only those of homogeneous functions are known."""
        leaves: dict[int, int] = {}
        known = 0
        for degree, some in self.leaves.items():
            alone = some & ~self.unknown
            for other, more in self.leaves.items():
                alone &= ~more if other != degree else -1
            power, rest = divmod(degree * numerator, denominator)
            if not rest and abs(power) <= _MAX_DEGREE:
                leaves[power] = leaves.get(power, 0) | alone
                known |= alone
        return Degrees(leaves, deps & ~known)


@dataclasses.dataclass(frozen=True)
class Generic:
    """What is almost surely true of the entries of an array.

    Attributes:
      deps: the leaves that entries may depend on.
      degrees: in which way.
      nonzero: no entry is zero.
      nonneg: every entry is zero or positive, for all parameters.
      varies: leaves in which no entry is constant, whatever the other leaves are.
      rows: axes along which no row is all zeros.
      distinct: axes along which no two entries are equal.
      labels: by axis, the slices that its positions depend on.
      infinite: entries may be infinite or no numbers, and then are as equal as zeros are: masks hold -inf.
    """

    deps: int = 0
    degrees: Degrees = dataclasses.field(default_factory=lambda: Degrees({0: -1}))
    nonzero: bool = False
    nonneg: bool = False
    varies: int = 0
    rows: frozenset[int] = frozenset()
    distinct: frozenset[int] = frozenset()
    labels: Mapping[int, frozenset[Label]] = dataclasses.field(default_factory=dict)
    infinite: bool = False

    def __post_init__(self) -> None:
        if self.nonzero:
            # A function of one degree other than 0 is constant only where it is zero.
            moving = self.deps & ~self.degrees.unknown & ~self.degrees.only(0)
            object.__setattr__(self, "varies", self.varies | moving)
        object.__setattr__(self, "nonzero", self.nonzero or bool(self.varies))

    @property
    def positive(self) -> bool:
        """Whether every entry is positive."""
        return self.nonneg and self.nonzero

    def is_distinct(self, axis: int) -> bool:
        """Whether no two entries along the axis are equal."""
        return axis in self.distinct or any(self.varies >> int(label[0]) & 1 for label in self.labels_of(axis))  # type: ignore[arg-type]

    def labels_of(self, axis: int) -> frozenset[Label]:
        """The slices that the positions of an axis depend on."""
        return self.labels.get(axis, frozenset())

    def has_rows(self, axes: Iterable[int]) -> bool:
        """Whether no row along these axes is all zeros."""
        return self.nonzero or any(axis in self.rows or self.is_distinct(axis) for axis in axes)

    def leaves_along(self, axis: int) -> int:
        """The leaves with a label along the axis."""
        leaves = 0
        for label in self.labels_of(axis):
            leaves |= 1 << int(label[0])  # type: ignore[arg-type]
        return leaves


def parameter(number: int, rank: int, known: bool = True) -> Generic:
    """A leaf of the parameters, whose entries are independent if they are real numbers."""
    leaf = 1 << number
    if not known:
        return Generic(leaf, Degrees({0: ~leaf}, leaf))
    labels = {axis: frozenset([(number, axis)]) for axis in range(rank)}
    return Generic(leaf, Degrees({1: leaf, 0: ~leaf}), nonzero=True, labels=labels)


def data(shape: tuple[int, ...], array: np.ndarray | None) -> Generic:
    """An argument: rows of an array that is not known are not all zeros, and neither is a number."""
    rows = frozenset(range(len(shape)))
    if array is None:
        return Generic(nonzero=not shape, rows=rows)
    known = constant(array)
    return Generic(nonzero=not shape and known.nonzero, rows=known.rows, infinite=known.infinite)


def constant(array: np.ndarray) -> Generic:
    """An array that is known."""
    if not (np.issubdtype(array.dtype, np.number) or array.dtype == bool):
        return Generic()
    if not np.isfinite(array).all():
        return Generic(infinite=True)
    if not array.any():
        return Generic(degrees=Degrees(), nonneg=True)  # zero is homogeneous of every degree
    rows = frozenset(axis for axis in range(array.ndim) if (array != 0).any(axis).all())
    nonneg = not np.iscomplexobj(array) and bool((array >= 0).all())
    return Generic(nonzero=bool((array != 0).all()), nonneg=nonneg, rows=rows)


def opaque(*operands: Generic) -> Generic:
    """A value of which nothing is known but what it is made of."""
    deps = 0
    for operand in operands:
        deps |= operand.deps
    return Generic(deps, Degrees({0: ~deps}, deps), infinite=any(x.infinite for x in operands))


UNKNOWN = Generic(-1, Degrees({}, -1))  # and it may be made of anything


def entries_of(x: Generic, **others: object) -> Generic:
    """What is true of some of the entries of a value, in any order."""
    return dataclasses.replace(x, **{"rows": frozenset(), "distinct": frozenset(), "labels": {}, **others})  # type: ignore[arg-type]


def moved(x: Generic, where: Mapping[int, int]) -> Generic:
    """What is true of a value whose axes go to other places; what is said of others is dropped."""
    return entries_of(
        x,
        rows=frozenset(where[axis] for axis in x.rows if axis in where),
        distinct=frozenset(where[axis] for axis in x.distinct if axis in where),
        labels={where[axis]: labels for axis, labels in x.labels.items() if axis in where},
    )


def common_labels(rank: int, operands: Iterable[Generic]) -> dict[int, frozenset[Label]]:
    """The labels of a result: where an operand depends on the leaf, its positions must have the same slices."""
    operands = list(operands)
    out = {}
    for axis in range(rank):
        labels = frozenset().union(*(x.labels_of(axis) for x in operands))
        kept = frozenset(
            label
            for label in labels
            if all(label in x.labels_of(axis) or not x.deps >> int(label[0]) & 1 for x in operands)  # type: ignore[arg-type]
        )
        if kept:
            out[axis] = kept
    return out


def either(*cases: Generic, rank: int) -> Generic:
    """What is true of each entry of one of several values, whichever that is."""
    if any(case.infinite for case in cases):
        return opaque(*cases)
    first, *others = cases
    deps, degrees = first.deps, first.degrees
    nonzero, nonneg, varies = first.nonzero, first.nonneg, first.varies
    for case in others:
        deps, degrees = deps | case.deps, degrees | case.degrees
        nonzero, nonneg, varies = nonzero and case.nonzero, nonneg and case.nonneg, varies & case.varies
    return Generic(deps, degrees, nonzero, nonneg, varies, labels=common_labels(rank, cases))


def meet(x: Generic, y: Generic, rank: int) -> Generic:
    """What is true of two values."""
    if x == y:
        return x
    if x.infinite or y.infinite:
        return opaque(x, y)
    return dataclasses.replace(
        either(x, y, rank=rank),
        rows=frozenset(a for a in range(rank) if x.has_rows([a]) and y.has_rows([a])),
        distinct=frozenset(a for a in range(rank) if x.is_distinct(a) and y.is_distinct(a)),
    )
