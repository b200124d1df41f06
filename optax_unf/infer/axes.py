"""From terms to the axes of a spec: names for the permutations that are free."""

from collections.abc import Iterable, Mapping

from optax_unf.infer.terms import Atom, Product, Sum, Term, Uniform, fix, resolve
from optax_unf.spec.axes import Axis, Concat, Fixed, merge_fixed


def named_axes(
    terms: Mapping[str, Iterable[Term]], allowed: frozenset[str]
) -> tuple[dict[str, tuple[Axis, ...]], dict[str, Atom]]:
    """The axes of every leaf, and what each name stands for.

    A name is the path of the leaf and the number of the axis where its permutation occurs first, as in
    `"dense/kernel:1"`, with the number of the factor or part where the axis has several, as in `"qkv/kernel:1.2"`.

    Args:
      terms: a term per axis, by path, in the order in which names are given.
      allowed: reasons that do not keep an atom from having a name.
    """
    terms = {path: [_shallow(term) for term in axes] for path, axes in terms.items()}
    names: dict[Atom, str] = {}
    for path, axes in terms.items():
        for number, term in enumerate(axes):
            places = list(_leaf_terms(term))
            for place, atom in enumerate(places):
                if isinstance(atom, Atom) and _is_free(atom, allowed):
                    several = f".{place}" if len(places) > 1 else ""
                    names.setdefault(atom, f"{path}:{number}{several}")
    axes = {path: tuple(_axis(term, names) for term in axes) for path, axes in terms.items()}
    return axes, {name: atom for atom, name in names.items()}


def reasons_of(term: Term) -> tuple[str, ...]:
    """Why positions of the term may not move, sorted."""
    term = resolve(term)
    if isinstance(term, Sum) and not any(isinstance(part, Atom) for part in _leaf_terms(term)):
        # Cut into single positions, as by a comparison of neighbours.
        return ("order",)
    return tuple(sorted({reason for atom in _leaf_terms(term) if isinstance(atom, Atom) for reason in atom.reasons}))


def _is_free(atom: Atom, allowed: frozenset[str]) -> bool:
    return atom.reasons <= allowed


def _leaf_terms(term: Term) -> Iterable[Term]:
    if isinstance(term, Product | Sum):
        for part in term.parts:
            yield from _leaf_terms(resolve(part))
    else:
        yield term


def _shallow(term: Term) -> Term:
    """The term, with concatenations at most as factors of an axis: what is deeper may not move."""

    def without_sums(term: Term) -> Term:
        term = resolve(term)
        if isinstance(term, Sum):
            for part in term.parts:
                fix(part, "depth")
            return Atom(term.size, "depth")
        return Product([without_sums(part) for part in term.parts]) if isinstance(term, Product) else term

    def factor(term: Term) -> Term:
        term = resolve(term)
        return Sum([without_sums(part) for part in term.parts]) if isinstance(term, Sum) else term

    term = resolve(term)
    return Product([factor(part) for part in term.parts]) if isinstance(term, Product) else factor(term)


def _axis(term: Term, names: Mapping[Atom, str]) -> Axis:
    axis = merge_fixed(_written(term, names))
    # One fixed part that fills an axis has its size from there.
    return None if isinstance(axis, Fixed) else axis


def _written(term: Term, names: Mapping[Atom, str]) -> Axis:
    if isinstance(term, Product):
        return tuple(f for part in term.parts for f in _factors(_written(part, names)))  # type: ignore[misc]
    if isinstance(term, Sum):
        parts = [merge_fixed(_written(part, names)) for part in term.parts]
        if len(parts) > 1 and all(part == parts[0] for part in parts) and not isinstance(parts[0], Fixed):
            return (Fixed(len(parts)), *_factors(parts[0]))  # type: ignore[return-value]
        return merge_fixed(Concat(*parts))  # type: ignore[arg-type]
    if isinstance(term, Uniform) or term not in names:
        return Fixed(term.size)
    return names[term]


def _factors(axis: Axis) -> tuple[Axis, ...]:
    return axis if isinstance(axis, tuple) else (axis,)
