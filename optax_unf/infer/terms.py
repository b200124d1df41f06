"""What is known about an axis while a function is followed: which permutations move its positions.

An axis is described by a *term*: an atom (one permutation, still unknown to be free), a product of terms (the axis
reshaped into factors, row-major), a sum of terms (the axis cut into parts), or uniform (the value does not vary along
the axis, so that any permutation leaves it alone). Two axes whose positions must move together are joined, as in
unification: atoms are bound to each other, or to products and sums when one side turns out to have structure. An atom
that may not move at all has a reason. Everything here only ever shrinks the group, so its order does not matter for
soundness.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

Term: TypeAlias = "Uniform | Atom | Product | Sum"


class Uniform:
    """An axis along which the value is constant."""

    __slots__ = ("size",)

    def __init__(self, size: int) -> None:
        self.size = size


class Atom:
    """One permutation of `size` positions. Bound atoms stand for the term that they are bound to.

    Attributes:
      size: how many positions it permutes.
      reasons: why it may not move; empty if it may.
      bound: the term that it turned out to be.
    """

    __slots__ = ("bound", "reasons", "size")

    def __init__(self, size: int, *reasons: str) -> None:
        self.size = size
        self.reasons = set(reasons)
        self.bound: Term | None = None


class Product:
    """Terms whose product is the axis, the slowest first."""

    __slots__ = ("parts", "size")

    def __init__(self, parts: Sequence[Term]) -> None:
        self.parts = tuple(parts)
        self.size = math.prod(part.size for part in self.parts)


class Sum:
    """Terms whose concatenation is the axis."""

    __slots__ = ("parts", "size")

    def __init__(self, parts: Sequence[Term]) -> None:
        self.parts = tuple(parts)
        self.size = sum(part.size for part in self.parts)


class _MismatchError(Exception):
    """Two terms have no common structure."""


_STUCK = {"order", "constant", "unknown"}
# Joining an axis with itself, shifted, cuts it into its positions one by one: after so many parts it does not move.
_MAX_PARTS = 128


def resolve(term: Term) -> Term:
    """The term with every binding followed, products and sums flat, and trivial parts left out."""
    if term.size <= 1:
        return Uniform(term.size)
    if isinstance(term, Atom):
        if term.bound is None:
            return term
        term.bound = resolve(term.bound)
        return term.bound
    if isinstance(term, Uniform):
        return term
    return product_of(term.parts) if isinstance(term, Product) else sum_of(term.parts)


def product_of(terms: Sequence[Term]) -> Term:
    """The product of terms; uniform neighbours become one."""
    parts: list[Term] = []
    for term in map(resolve, terms):
        for part in term.parts if isinstance(term, Product) else (term,):
            if isinstance(part, Uniform) and parts and isinstance(parts[-1], Uniform):
                parts[-1] = Uniform(parts[-1].size * part.size)
            elif part.size != 1:
                parts.append(part)
    if not parts:
        return Uniform(1)
    return parts[0] if len(parts) == 1 else Product(parts)


def sum_of(terms: Sequence[Term]) -> Term:
    """The concatenation of terms. Uniform neighbours stay apart, since each has a value of its own."""
    parts: list[Term] = []
    for term in map(resolve, terms):
        for part in term.parts if isinstance(term, Sum) else (term,):
            if part.size:
                parts.append(part)
    if not parts:
        return Uniform(0)
    return parts[0] if len(parts) == 1 else Sum(parts)


def atoms(term: Term) -> Iterator[Atom]:
    """The atoms of a term, in order, repeated where it repeats them."""
    term = resolve(term)
    if isinstance(term, Atom):
        yield term
    elif isinstance(term, Product | Sum):
        for part in term.parts:
            yield from atoms(part)


def fix(term: Term, *reasons: str) -> None:
    """Forbids every permutation of the term."""
    for atom in atoms(term):
        atom.reasons.update(reasons)


def is_movable(term: Term) -> bool:
    """Whether some permutation of the term is still free."""
    return any(not atom.reasons for atom in atoms(term))


def _is_stuck(term: Term) -> bool:
    """Whether the term cannot move whatever the user allows, so that its structure does not matter."""
    return all(not atom.reasons.isdisjoint(_STUCK) for atom in atoms(term))


def is_uniform(term: Term) -> bool:
    """Whether nothing varies along the axis."""
    return isinstance(resolve(term), Uniform)


def has_repeats(term: Term) -> bool:
    """Whether the value is equal at several positions of the axis, whatever the parameters."""
    term = resolve(term)
    if isinstance(term, Product | Sum):
        return any(map(has_repeats, term.parts))
    return isinstance(term, Uniform) and term.size > 1


def is_same(a: Term, b: Term) -> bool:
    """Whether two terms are the same, part by part."""
    a, b = resolve(a), resolve(b)
    if isinstance(a, Product | Sum) and isinstance(b, Product | Sum):
        return type(a) is type(b) and len(a.parts) == len(b.parts) and all(map(is_same, a.parts, b.parts))
    return a is b or (isinstance(a, Uniform) and isinstance(b, Uniform) and a.size == b.size)


def join(a: Term, b: Term) -> Term:
    """The term of a value that varies along its axis as both do: their positions must move together.

    Where the two have no common structure, neither may move.
    """
    try:
        return _join(a, b)
    except _MismatchError:
        fix(a, "order")
        fix(b, "order")
        return Atom(a.size, "order")


def _join(a: Term, b: Term) -> Term:
    a, b = resolve(a), resolve(b)
    if a is b or isinstance(b, Uniform):
        return a
    if isinstance(a, Uniform):
        return b
    if _is_stuck(a) and _is_stuck(b):
        return a if isinstance(a, Atom) else b if isinstance(b, Atom) else Atom(a.size, "order")
    if isinstance(a, Atom):
        return _bind(a, b)
    if isinstance(b, Atom):
        return _bind(b, a)
    if isinstance(a, Product) and isinstance(b, Product):
        return product_of(_join_parts(list(a.parts), list(b.parts), split_product))
    if isinstance(a, Sum) and isinstance(b, Sum):
        return sum_of(_join_parts(list(a.parts), list(b.parts), split_sum))
    product, total = (a, b) if isinstance(a, Product) else (b, a)
    try:
        outer, inner = split_product(total, product.parts[0].size)
    except _MismatchError:
        return sum_of(_join_parts([product], list(total.parts), split_sum))  # type: ignore[union-attr]
    return product_of([_join(product.parts[0], outer), _join(product_of(product.parts[1:]), inner)])


def _bind(atom: Atom, term: Term) -> Term:
    if not isinstance(term, Atom):
        # An atom varies along all of its axis, so it has atoms where the other is uniform.
        term = _with_atoms(term)
    if any(other is atom for other in atoms(term)):
        raise _MismatchError
    atom.bound = term
    fix(term, *atom.reasons)
    return term


def _with_atoms(term: Term) -> Term:
    if isinstance(term, Uniform):
        return Atom(term.size)
    if isinstance(term, Product | Sum):
        return type(term)([_with_atoms(part) for part in term.parts])
    return term


def _join_parts(left: list[Term], right: list[Term], split: Callable[[Term, int], tuple[Term, Term]]) -> list[Term]:
    """Parts of two products, or of two sums, joined in order; where one is larger, it is split first."""
    parts = []
    while left and right:
        a, b = left.pop(0), right.pop(0)
        if a.size > b.size:
            a, rest = split(a, b.size)
            left.insert(0, rest)
        elif b.size > a.size:
            b, rest = split(b, a.size)
            right.insert(0, rest)
        parts.append(_join(a, b))
        if len(parts) > _MAX_PARTS:
            raise _MismatchError
    return parts


def split_product(term: Term, outer: int) -> tuple[Term, Term]:
    """The term as a product of two, the first of size `outer`.

    Raises:
      _MismatchError: it has no such structure.
    """
    term = resolve(term)
    if outer == 0 or term.size % outer:
        raise _MismatchError
    inner = term.size // outer
    if outer == 1 or inner == 1:
        return (term, Uniform(1)) if inner == 1 else (Uniform(1), term)
    if isinstance(term, Uniform):
        return Uniform(outer), Uniform(inner)
    if isinstance(term, Atom):
        pair = Atom(outer, *term.reasons), Atom(inner, *term.reasons)
        term.bound = Product(pair)
        return pair
    if isinstance(term, Product):
        taken, rest = [], list(term.parts)
        while outer > 1:
            part = rest.pop(0)
            if outer % part.size:
                part, remainder = split_product(part, outer)
                rest.insert(0, remainder)
            taken.append(part)
            outer //= part.size
        return product_of(taken), product_of(rest)
    # Parts of a sum that have a common inner factor: (a + b) x = a x + b x.
    if any(part.size % inner for part in term.parts):
        raise _MismatchError
    split = [split_product(part, part.size // inner) for part in term.parts]
    common = split[0][1]
    for _, other in split[1:]:
        common = _join(common, other)
    return sum_of([first for first, _ in split]), common


def split_sum(term: Term, first: int) -> tuple[Term, Term]:
    """The term as a sum of two, the first of size `first`. It always has that structure, if less may move."""
    term = resolve(term)
    rest = term.size - first
    if not first or not rest:
        return (Uniform(0), term) if rest else (term, Uniform(0))
    if isinstance(term, Uniform):
        return Uniform(first), Uniform(rest)
    if isinstance(term, Atom):
        pair = Atom(first, *term.reasons), Atom(rest, *term.reasons)
        term.bound = Sum(pair)
        return pair
    if isinstance(term, Sum):
        taken, left = [], list(term.parts)
        while first:
            part = left.pop(0)
            if part.size > first:
                part, remainder = split_sum(part, first)
                left.insert(0, remainder)
            taken.append(part)
            first -= part.size
        return sum_of(taken), sum_of(left)
    # A product whose slowest factor does not move is a sum of copies of the rest.
    copies, copy = term.parts[0].size, product_of(term.parts[1:])
    fix(term.parts[0], "order")
    whole, cut = divmod(first, copy.size)

    def repeated(times: int) -> Term:
        return product_of([Uniform(times) if is_uniform(term.parts[0]) else Atom(times, "order"), copy])

    if not cut:
        return repeated(whole), repeated(copies - whole)
    start, end = split_sum(copy, cut)
    return sum_of([repeated(whole), start]), sum_of([end, repeated(copies - whole - 1)])


def regroup(terms: Sequence[Term], sizes: Sequence[int]) -> list[Term]:
    """The terms of an array's axes after a row-major reshape to `sizes`."""
    if math.prod(sizes) == 0:
        return [Uniform(size) for size in sizes]
    out: list[Term] = []
    left = list(terms)
    remaining = list(sizes)
    while remaining:
        # The fewest axes on both sides that have one size together.
        taken, wanted = [], [remaining.pop(0)]
        while (size := math.prod(term.size for term in taken)) != math.prod(wanted):
            if size < math.prod(wanted):
                taken.append(left.pop(0))
            else:
                wanted.append(remaining.pop(0))
        out += _regroup(taken, wanted)
    return out


def _regroup(terms: Sequence[Term], sizes: Sequence[int]) -> list[Term]:
    whole = product_of(terms)
    out: list[Term] = []
    try:
        for size in sizes:
            part, whole = split_product(whole, size)
            out.append(part)
    except _MismatchError:
        for term in terms:
            fix(term, "order")
        return [Atom(size, "order") for size in sizes]
    return out
