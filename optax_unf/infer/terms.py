"""What is known about an axis while a function is followed: which permutations move its positions.

An axis is described by a *term*: an atom (one permutation, still unknown to be free), a product of terms (the axis
reshaped into factors, row-major), a sum of terms (the axis cut into parts), or uniform (the value does not vary along
the axis, so that any permutation leaves it alone). An atom that may not move at all has a reason. Everything that is
done to terms only ever shrinks the group, so its order does not matter for soundness.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
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
    """Terms whose concatenation is the axis.

    Attributes:
      parts: the terms. A part may be replaced by several that it is the concatenation of.
      starts: where each begins.
    """

    __slots__ = ("parts", "size", "starts")

    def __init__(self, parts: Sequence[Term]) -> None:
        self.parts = list(parts)
        *self.starts, self.size = itertools.accumulate((part.size for part in self.parts), initial=0)


# Reasons that no mode lifts.
_STUCK = {"order", "constant", "unknown"}


def head(term: Term) -> Term:
    """The term with the bindings of the whole axis followed, but not those of its parts."""
    followed = []
    while isinstance(term, Atom) and term.bound is not None:
        followed.append(term)
        term = term.bound
    for atom in followed:
        atom.bound = term
    return Uniform(term.size) if term.size <= 1 else term


def resolve(term: Term) -> Term:
    """The term with every binding followed, products and sums flat, and trivial parts left out."""
    whole = head(term)
    if isinstance(whole, Uniform | Atom):
        return whole
    flat = product_of(whole.parts) if isinstance(whole, Product) else sum_of(whole.parts)
    if isinstance(term, Atom):
        term.bound = flat
    return flat


def product_of(terms: Sequence[Term]) -> Term:
    """The product of terms; uniform neighbours become one."""
    parts: list[Term] = []
    for part in _flat(terms, Product):
        if isinstance(part, Uniform) and parts and isinstance(parts[-1], Uniform):
            parts[-1] = Uniform(parts[-1].size * part.size)
        elif part.size != 1:
            parts.append(part)
    if not parts:
        return Uniform(1)
    return parts[0] if len(parts) == 1 else Product(parts)


def sum_of(terms: Sequence[Term]) -> Term:
    """The concatenation of terms.

    Uniform neighbours stay apart, since each has a value of its own. Neighbours that do not move become one.
    """
    parts: list[Term] = []
    for part in _flat(terms, Sum):
        if part.size and parts and _stays(part) and _stays(parts[-1]):
            reasons = {reason for p in (parts[-1], part) if isinstance(p, Atom) for reason in p.reasons}
            parts[-1] = Atom(parts[-1].size + part.size, *(reasons or {"order"}))
        elif part.size:
            parts.append(part)
    if not parts:
        return Uniform(0)
    return parts[0] if len(parts) == 1 else Sum(parts)


def _flat(terms: Sequence[Term], kind: type[Product] | type[Sum]) -> Iterator[Term]:
    """The terms resolved, and the parts in place of those that are of the kind. No recursion: such chains are long."""
    left = list(reversed(terms))
    while left:
        term = head(left.pop())
        if isinstance(term, Product | Sum) and not isinstance(term, kind):
            term = resolve(term)
        if isinstance(term, kind):
            left.extend(reversed(term.parts))
        else:
            yield term


def _stays(term: Term) -> bool:
    return term.size == 1 or (isinstance(term, Atom) and not term.reasons.isdisjoint(_STUCK))


def atoms(term: Term) -> Iterator[Atom]:
    """The atoms of a term, in order, repeated where it repeats them."""
    term = resolve(term)
    if isinstance(term, Atom):
        yield term
    elif isinstance(term, Product | Sum):
        for part in term.parts:
            yield from atoms(part)


def fix(term: Term, *reasons: str) -> None:
    """Forbids every permutation of the term. Its uniform parts stay uniform."""
    for atom in atoms(term):
        atom.reasons.update(reasons)


def ordered(term: Term, reason: str = "order", size: int | None = None) -> Term:
    """The term of what an operation for which order matters makes of an axis, of that size or of the same.

    Uniform parts of the axis, such as padding, are not uniform in the result.
    """
    fix(term, reason)
    return Atom(term.size if size is None else size, reason)


def is_movable(term: Term) -> bool:
    """Whether some permutation of the term is still free."""
    return any(not atom.reasons for atom in atoms(term))


def is_fixed(term: Term) -> bool:
    """Whether no position can move whatever the user allows, and nothing is uniform: structure does not matter."""
    term = head(term)
    if isinstance(term, Product | Sum):
        return all(map(is_fixed, term.parts))
    return _stays(term)


def is_uniform(term: Term) -> bool:
    """Whether nothing varies along the axis."""
    return isinstance(head(term), Uniform)


def has_repeats(term: Term) -> bool:
    """Whether the value is equal at several positions of the axis, whatever the parameters."""
    term = resolve(term)
    if isinstance(term, Product | Sum):
        return any(map(has_repeats, term.parts))
    return isinstance(term, Uniform) and term.size > 1


def is_same(a: Term, b: Term) -> bool:
    """Whether two terms are the same, part by part."""
    a, b = resolve(a), resolve(b)
    if a is b or (is_fixed(a) and is_fixed(b)):
        return a.size == b.size
    if isinstance(a, Product | Sum) and isinstance(b, Product | Sum):
        return type(a) is type(b) and len(a.parts) == len(b.parts) and all(map(is_same, a.parts, b.parts))
    return isinstance(a, Uniform) and isinstance(b, Uniform) and a.size == b.size
