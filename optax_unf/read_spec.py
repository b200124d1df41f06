"""Reading a permutation spec from nested tuples of names that mirror the parameters."""

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from optax_unf.paths import children, is_leaf, join_path, leaves_by_path, natural_order, plain_key, show_path, unboxed
from optax_unf.spec import Axes, LeafSpec, Name, PermutationSpec, names_of


def make_spec(tree: PyTree | None, params: PyTree, *, sizes: Mapping[Name, int] | None = None) -> PermutationSpec:
    """A permutation spec from nested tuples of names that mirror the parameters.

    Args:
      tree: mirrors `params`, with a tuple of axis names in the place of each array, as in the paper's
        Appendix A: strings or integers, `None` for an axis that is not permuted, a tuple of names for an axis
        that is a product (`("heads", "head_size")`), `()` for a scalar. Plain dicts may stand for any mapping,
        lists and tuples for each other. What it says about an empty subtree of the parameters (`None`, or a leaf
        that `optax.masked` took out) is ignored. `None` gives every axis a name of its own: the largest group,
        always valid.
      params: the parameters; only shapes are read, so `jax.ShapeDtypeStruct` leaves are fine.
      sizes: sizes of names that stand only in product axes and do not follow from the other axes.

    Returns:
      The spec.

    Raises:
      ValueError: a leaf is missing or unknown, has another number of axes, a name has two sizes, or two leaves
        have one path.
      TypeError: a name is neither a string nor an integer, nor `None`.

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
    return PermutationSpec(
        tuple(
            LeafSpec(path, shapes[path], axes[path], _factors(path, axes[path], shapes[path], known))
            for path in sorted(shapes, key=natural_order)
        )
    )


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
    return tuple(
        tuple(_as_name(name, here) for name in axis) if isinstance(axis, tuple) else _as_name(axis, here)
        for axis in node
    )


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
    used = {name for leaf_axes in axes.values() for axis in leaf_axes for name in names_of(axis)} - {None}
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
            if axis is None or isinstance(axis, tuple):
                continue
            here = f"axis {index} of leaf {show_path(path)}"
            if known.setdefault(axis, size) != size:
                raise ValueError(
                    f"Axes with one name must have one size, but {axis!r} has size {known[axis]} in {where[axis]} "
                    f"and {size} in {here}. Give one of them another name."
                )
            where.setdefault(axis, here)
    # A product axis determines the one factor that is still unknown, which may make another product solvable.
    products = [
        (axis, size)
        for path, leaf_axes in axes.items()
        for axis, size in zip(leaf_axes, shapes[path], strict=True)
        if isinstance(axis, tuple) and None not in axis
    ]
    solved = True
    while solved:
        solved = False
        for axis, size in products:
            unknown = {name for name in axis if name not in known}
            rest = math.prod(known[name] for name in axis if name is not None and name in known)
            if len(unknown) == 1 and sum(name in unknown for name in axis) == 1 and rest and size % rest == 0:
                (name,) = unknown
                known[name] = size // rest  # type: ignore[index]
                solved = True
    return known


def _factors(
    path: str, axes: Axes, shape: tuple[int, ...], known: Mapping[Name, int]
) -> tuple[tuple[Name | None, int], ...]:
    factors: list[tuple[Name | None, int]] = []
    for index, (axis, size) in enumerate(zip(axes, shape, strict=True)):
        names = names_of(axis)
        unknown = [name for name in names if name is not None and name not in known]
        solved = [(name, known[name]) for name in names if name is not None and name in known]
        rest = math.prod(size for _, size in solved)
        if unknown:
            if rest and size % rest:
                raise ValueError(
                    f"Axis {index} of leaf {show_path(path)} is the product {axis} and must have a size that "
                    f"{dict(solved)} divides, but has {size}. Give it other names, or mend its shape."
                )
            raise ValueError(
                f"The size of {unknown[0]!r} in axis {index} of leaf {show_path(path)} does not follow from the "
                f"shapes. Give it: make_spec(..., sizes={{{unknown[0]!r}: ...}})."
            )
        fixed = sum(name is None for name in names)
        position = size // rest if fixed == 1 and rest else 1
        sizes = [position if name is None else known[name] for name in names]
        if fixed > 1 or math.prod(sizes) != size:
            raise ValueError(
                f"Axis {index} of leaf {show_path(path)} has size {size}, which must be the product of its factors "
                f"{', '.join(f'{name!r}: {n}' for name, n in zip(names, sizes, strict=True)) or 'none'} (at most one "
                f"of them None). Give it other names, or mend its shape."
            )
        factors += zip(names, sizes, strict=True)
    return tuple(factors)
