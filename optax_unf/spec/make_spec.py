"""Reading a permutation spec from nested tuples of names that mirror the parameters."""

from collections.abc import Mapping
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from optax_unf.spec.axes import Axes, Axis, Concat, Fixed, Name, atoms_of, map_atoms, merge_fixed, names_of, size_of
from optax_unf.spec.leaf import Factors, LeafSpec
from optax_unf.spec.paths import (
    children,
    is_leaf,
    join_path,
    leaves_by_path,
    natural_order,
    plain_key,
    show_path,
    unboxed,
)
from optax_unf.spec.permutation_spec import PermutationSpec


def make_spec(tree: PyTree | None, params: PyTree, *, sizes: Mapping[Name, int] | None = None) -> PermutationSpec:
    """A permutation spec from nested tuples of names that mirror the parameters.

    Args:
      tree: mirrors `params`, with a tuple of axis names in the place of each array, as in the paper's
        Appendix A: strings or integers, `None` or `Fixed(size)` for an axis that is not permuted, a tuple of those for
        an axis that is a product (`("heads", "head_size")`), `Concat("encoder", "decoder")` for one that is a
        concatenation, `()` for a scalar. Plain dicts may stand for any mapping, lists and tuples for each other. What
        it says about an empty subtree of the parameters (`None`, or a leaf that `optax.masked` took out) is ignored.
        `None` gives every axis a name of its own: the largest group, always valid.
      params: the parameters; only shapes are read, so `jax.ShapeDtypeStruct` leaves are fine.
      sizes: sizes of names that stand only in products and concatenations and do not follow from the other axes.

    Returns:
      The spec.

    Raises:
      ValueError: a leaf is missing or unknown, has another number of axes, a name has two sizes, or two leaves
        have one path.
      TypeError: a name is neither a string nor an integer, nor `None`, or axes are nested deeper than names in
        products in a `Concat` in a product.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"w": jnp.zeros((3, 2)), "b": jnp.zeros(3)}
      >>> spec = make_spec({"w": ("out", "in"), "b": ("out",)}, params)
      >>> spec.sizes
      {'out': 3, 'in': 2}
    """
    shapes = {path: tuple(jnp.shape(x)) for path, x in leaves_by_path(params).items()}
    if tree is None:
        axes = {path: tuple(f"{path}:{axis}" for axis in range(len(shape))) for path, shape in shapes.items()}
    else:
        axes = {}
        _collect_axes(tree, _trie(params), (), axes)
    for path, shape in shapes.items():
        _check_axes(path, axes[path], shape)
    known = _name_sizes(axes, shapes, _given_sizes(sizes or {}, axes))
    paths = sorted(shapes, key=natural_order)
    return PermutationSpec(tuple(_leaf(path, shapes[path], axes[path], known) for path in paths))


# Reading the tree of names along the structure of the parameters.

_Trie: TypeAlias = dict[str, "_Trie"] | None  # a leaf is None


def _trie(tree: PyTree) -> _Trie:
    node = unboxed(tree)
    if is_leaf(node):
        return None
    return {plain_key(key): _trie(child) for (key,), child in children(node)}


def _is_empty(trie: _Trie) -> bool:
    return trie is not None and all(_is_empty(child) for child in trie.values())


def _collect_axes(node: Any, trie: _Trie, keys: tuple[str, ...], axes: dict[str, Axes]) -> None:
    if _is_empty(trie):
        return
    node, path = unboxed(node), join_path(keys)
    if isinstance(node, Mapping) and list(node) == ["value"] and "value" not in (trie or {}):
        node = node["value"]  # a plain dict for a box
    if trie is None:
        axes[path] = _as_axes(node, path)
        return
    entries = _entries(node, path)
    for key, child in trie.items():
        if key in entries:
            _collect_axes(entries[key], child, (*keys, key), axes)
        elif not _is_empty(child):
            raise ValueError(
                f"The spec must have an entry for the leaf or subtree {show_path(join_path((*keys, key)))} of the "
                f"parameters, but has only {sorted(entries)} there. Add a tuple of axis names for each leaf."
            )
    for key, entry in entries.items():
        if key not in trie and not _names_nothing(entry):
            raise ValueError(
                f"The spec has an entry {show_path(join_path((*keys, key)))} that the parameters lack; they have "
                f"{sorted(trie)} there. Remove it, or mend its name."
            )


def _names_nothing(entry: Any) -> bool:
    return entry is None or (isinstance(entry, Mapping | list) and not entry)


def _entries(node: Any, path: str) -> dict[str, Any]:
    """The children of a node of the tree of names."""
    if isinstance(node, Mapping):
        pairs = [(str(key), value) for key, value in node.items()]
    elif is_leaf(node):
        raise ValueError(
            f"The spec must mirror the parameters, which have a subtree at {show_path(path)}, but has {node!r} there. "
            f"Put a dict, list, tuple or dataclass of the same keys in its place."
        )
    else:
        pairs = [(plain_key(key), value) for (key,), value in children(node)]
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise ValueError(
            f"Keys of the spec must be distinct as strings, but at {show_path(path)} they are "
            f"{[key for key, _ in pairs]}. Remove one of the equal ones."
        )
    return entries


def _as_axes(node: Any, path: str) -> Axes:
    if not isinstance(node, list | tuple):
        raise TypeError(
            f"The spec of leaf {show_path(path)} must be a tuple of axis names, one per axis, but is {node!r}. "
            f"Write ('out', 'in') for a matrix, () for a scalar."
        )
    here = f"leaf {show_path(path)}"
    return tuple(_as_axis(axis, here) for axis in node)


def _as_axis(axis: Any, where: str, inside: tuple[type, ...] = ()) -> Any:
    """An axis, or what stands inside of a product or concatenation, outermost first."""
    if isinstance(axis, Concat) and Concat not in inside:
        return Concat(*(_as_axis(part, where, (*inside, Concat)) for part in axis.parts))
    if isinstance(axis, tuple) and inside in ((), (Concat,), (tuple, Concat)):
        return tuple(_as_axis(factor, where, (*inside, tuple)) for factor in axis)
    if isinstance(axis, Concat | tuple):
        raise TypeError(
            f"A product must be a tuple of names, None, Fixed(size) or Concat, and a Concat must have parts that are "
            f"names, None, Fixed(size) or products of those, but {where} has {axis!r} of type {type(axis).__name__} "
            f"inside of a {inside[-1].__name__}. Write its contents there."
        )
    return axis if isinstance(axis, Fixed) else _as_name(axis, where)


def _as_name(name: Any, where: str) -> Name | None:
    if isinstance(name, bool) or not (name is None or isinstance(name, str | int | np.integer)):
        raise TypeError(
            f"Axis names must be strings, integers or None, but {where} has {name!r} of type {type(name).__name__}. "
            f"Write 'in' or 0 in its place."
        )
    return int(name) if isinstance(name, np.integer) else name


# Sizes.


def _check_axes(path: str, axes: Axes, shape: tuple[int, ...]) -> None:
    if len(axes) != len(shape):
        raise ValueError(
            f"The spec of leaf {show_path(path)} must have one entry per axis: the leaf has shape {shape}, "
            f"{len(shape)} axes, but the spec has {len(axes)}: {axes}. Write a name or None for each axis."
        )


def _given_sizes(sizes: Mapping[Name, int], axes: Mapping[str, Axes]) -> dict[Name, int]:
    used = {name for leaf_axes in axes.values() for axis in leaf_axes for name in names_of(axis)}
    given: dict[Name, int] = {}
    for key, size in sizes.items():
        name = _as_name(key, "the argument sizes")
        if name is None or name not in used:
            raise ValueError(
                f"The argument sizes must have names of the spec, but has {name!r}; the spec has "
                f"{', '.join(sorted(map(repr, used))) or 'no names'}. Remove it, or mend it."
            )
        if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 0:
            raise ValueError(f"The argument sizes must give {name!r} a size, a natural number, but gives {size!r}.")
        given[name] = int(size)
    return given


def _name_sizes(
    axes: Mapping[str, Axes], shapes: Mapping[str, tuple[int, ...]], sizes: dict[Name, int]
) -> dict[Name, int]:
    known = dict(sizes)
    where = dict.fromkeys(known, "the argument sizes")
    for path, leaf_axes in axes.items():
        for index, (axis, size) in enumerate(zip(leaf_axes, shapes[path], strict=True)):
            if not isinstance(axis, str | int):
                continue
            here = f"axis {index} of leaf {show_path(path)}"
            if known.setdefault(axis, size) != size:
                raise ValueError(
                    f"Axes with one name must have one size, but {axis!r} has size {known[axis]} in {where[axis]} "
                    f"and {size} in {here}. Give one of them another name."
                )
            where.setdefault(axis, here)
    # An axis determines the one name in it that is still unknown, which may make another axis solvable.
    composed = [
        (axis, size)
        for path, leaf_axes in axes.items()
        for axis, size in zip(leaf_axes, shapes[path], strict=True)
        if isinstance(axis, tuple | Concat) and None not in atoms_of(axis)
    ]
    solved = True
    while solved:
        solved = False
        for axis, size in composed:
            unknown = [name for name in names_of(axis) if name not in known]
            if len(unknown) == 1:
                line = _line(axis, known, unknown[0])
                if line is not None and _fits(size, line):
                    known[unknown[0]] = (size - line[0]) // line[1]
                    solved = True
    return known


def _line(axis: Axis, known: Mapping[Name, int], unknown: Name | None) -> tuple[int, int] | None:
    """The size of an axis as `base + slope * unknown`, or `None` where it is no such line with a positive slope."""
    # It is a polynomial with natural coefficients: three values on a line make it one.
    sizes = {name: known[name] for name in names_of(axis) if name != unknown}
    base, one, two = (size_of(axis, {**sizes, unknown: n}) for n in range(3))
    slope = one - base
    return (base, slope) if slope > 0 and two - one == slope else None


def _fits(size: int, line: tuple[int, int]) -> bool:
    base, slope = line
    return size >= base and (size - base) % slope == 0


# The axes of one leaf, once the sizes of names are known.


def _leaf(path: str, shape: tuple[int, ...], axes: Axes, known: Mapping[Name, int]) -> LeafSpec:
    written: list[Axis] = []
    factors: list[tuple[Name | None, int]] = []
    for index, (axis, size) in enumerate(zip(axes, shape, strict=True)):
        axis = _with_sizes(f"{index} of leaf {show_path(path)}", axis, size, known)
        factors += _factors(axis, known)
        written.append(_without_needless_sizes(axis, size, known))
    return LeafSpec(path, shape, tuple(written), tuple(factors))


def _factors(axis: Axis, known: Mapping[Name, int]) -> Factors:
    return tuple((None, a.size) if isinstance(a, Fixed) else (a, known[a]) for a in atoms_of(axis))  # type: ignore[index]


def _with_sizes(where: str, axis: Axis, size: int, known: Mapping[Name, int]) -> Axis:
    """The axis with a size for each fixed part, as short as it can be written."""
    solved = {name: known[name] for name in names_of(axis) if name in known}
    unknown = [name for name in names_of(axis) if name not in known]
    count = sum(atom is None for atom in atoms_of(axis))
    given = f"{_show(axis)}, with {solved}," if solved else f"{_show(axis)}"
    line = _line(axis, known, unknown[0] if unknown else None) if len(unknown) + count == 1 else None
    if line is not None and not _fits(size, line):
        base, slope = line
        raise ValueError(
            f"Axis {where} is {given} and must have a size that is {f'{base} and ' if base else ''}a multiple of "
            f"{slope}, but has {size}. Give it other names, or mend its shape."
        )
    if unknown:
        raise ValueError(
            f"The size of {unknown[0]!r} in axis {where} does not follow from the shapes. Give it: "
            f"make_spec(..., sizes={{{unknown[0]!r}: ...}})" + (", or write Fixed(size) for None." if count else ".")
        )
    if count > 1:
        raise ValueError(
            f"Axis {where} is {given} and may have at most one None among its parts, since their sizes do not follow "
            f"from its size {size}, but has {count}. Write Fixed(size) in their place."
        )
    fixed = 1 if line is None else (size - line[0]) // line[1]
    total = size_of(axis, {**solved, None: fixed})
    if total != size:
        raise ValueError(
            f"Axis {where} is {given} and must have size {total}, but has {size}. Give it other names, or mend its "
            f"shape."
        )
    return merge_fixed(map_atoms(lambda atom: Fixed(fixed) if atom is None else atom, axis))


def _without_needless_sizes(axis: Axis, size: int, known: Mapping[Name, int]) -> Axis:
    """The axis with `None` in the place of its only fixed part, where the size of that follows."""
    fixed = [atom.size for atom in atoms_of(axis) if isinstance(atom, Fixed)]
    if len(fixed) != 1:
        return axis
    short = map_atoms(lambda atom: None if isinstance(atom, Fixed) else atom, axis)
    line = _line(short, known, None)
    follows = 1 if line is None else (size - line[0]) // line[1]
    return short if [follows] == fixed else axis


def _show(axis: Axis) -> str:
    plain = isinstance(axis, tuple) and not any(isinstance(factor, Concat) for factor in axis)
    return f"the product {axis}" if plain else repr(axis)
