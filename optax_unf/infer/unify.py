"""Joining and splitting terms.

Two axes whose positions must move together are joined, as in unification: atoms are bound to each other, or to
products and sums when one side turns out to have structure. What has no common structure may not move.
"""

import bisect
import itertools
import math
from collections import deque
from collections.abc import Callable, Sequence

from optax_unf.infer.terms import (
    Atom,
    Product,
    Sum,
    Term,
    Uniform,
    atoms,
    fix,
    head,
    is_fixed,
    is_uniform,
    product_of,
    resolve,
    sum_of,
)

# Joining an axis with itself, shifted, cuts it into its positions one by one: after so many parts it does not move.
_MAX_PARTS = 128


class _MismatchError(Exception):
    """Two terms have no common structure."""


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
    if is_fixed(a) and is_fixed(b):
        return a if isinstance(a, Atom) else b if isinstance(b, Atom) else Atom(a.size, "order")
    if isinstance(a, Atom):
        return _bind(a, b)
    if isinstance(b, Atom):
        return _bind(b, a)
    if isinstance(a, Product) and isinstance(b, Product):
        return product_of(_join_parts(a.parts, b.parts, split_product))
    if isinstance(a, Sum) and isinstance(b, Sum):
        return sum_of(_join_parts(a.parts, b.parts, split_sum))
    product, total = (a, b) if isinstance(a, Product) else (b, a)
    try:
        outer, inner = split_product(total, product.parts[0].size)
    except _MismatchError:
        return sum_of(_join_parts([product], total.parts, split_sum))  # type: ignore[union-attr]
    return product_of([_join(product.parts[0], outer), _join(product_of(product.parts[1:]), inner)])


def _bind(atom: Atom, term: Term) -> Term:
    if is_fixed(atom):
        fix(term, *atom.reasons)
        return atom
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


def _join_parts(
    left: Sequence[Term], right: Sequence[Term], split: Callable[[Term, int], tuple[Term, Term]]
) -> list[Term]:
    """Parts of two products, or of two sums, joined in order; where one is larger, it is split first."""
    parts = []
    left, right = deque(left), deque(right)
    while left and right:
        a, b = left.popleft(), right.popleft()
        if a.size > b.size:
            a, rest = split(a, b.size)
            left.appendleft(rest)
        elif b.size > a.size:
            b, rest = split(b, a.size)
            right.appendleft(rest)
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
        if not is_fixed(term):
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
    return cut(term, 0, first), cut(term, first, term.size)


def cut(term: Term, start: int, limit: int) -> Term:
    """The term of the positions from `start` to `limit`."""
    term, size = head(term), limit - start
    if size == term.size:
        return term
    if not size or isinstance(term, Uniform):
        return Uniform(size)
    if isinstance(term, Product):
        return _cut_product(term, start, limit)
    if isinstance(term, Sum):
        return _cut_sum(term, start, limit)
    if is_fixed(term):
        return Atom(size, *term.reasons)
    part = Atom(size, *term.reasons)
    around = [Atom(n, *term.reasons) if n else Uniform(0) for n in (start, term.size - limit)]
    term.bound = Sum([p for p in (around[0], part, around[1]) if p.size])
    return part


def _cut_sum(term: Sum, start: int, limit: int) -> Term:
    _split_at(term, start)
    _split_at(term, limit)
    pieces: list[Term] = []
    number = bisect.bisect_right(term.starts, start) - 1
    while number < len(term.parts) and (first := term.starts[number]) < limit:
        part = term.parts[number]
        pieces.append(cut(part, max(start - first, 0), min(limit - first, part.size)))
        number += 1
    return sum_of(pieces)


def _split_at(term: Sum, at: int) -> None:
    """Replaces an atom that lies across a position by its parts, in place: so a thousand cuts take linear time.

    What is uniform is left as it is: it would mean less in parts, and may have been relied on.
    """
    while at < term.size:
        number = bisect.bisect_right(term.starts, at) - 1
        start, part = term.starts[number], head(term.parts[number])
        if start == at or not isinstance(part, Atom | Sum):
            return
        parts = split_sum(part, at - start) if isinstance(part, Atom) else part.parts
        *starts, _ = itertools.accumulate((p.size for p in parts), initial=start)
        term.parts[number : number + 1] = parts
        term.starts[number : number + 1] = starts


def _cut_product(term: Product, start: int, limit: int) -> Term:
    """A product whose slowest factor does not move is a sum of copies of the rest."""
    slow, copy = term.parts[0], product_of(term.parts[1:])
    fix(slow, "order")
    first, skipped = divmod(start, copy.size)
    last, more = divmod(limit, copy.size)
    if first == last:
        return cut(copy, skipped, more)
    begin = [cut(copy, skipped, copy.size)] if skipped else []
    whole = last - first - len(begin)
    middle = product_of([Uniform(whole) if is_uniform(slow) else Atom(whole, "order"), copy]) if whole else Uniform(0)
    return sum_of([*begin, middle, cut(copy, 0, more)])


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
