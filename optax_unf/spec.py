"""Permutation specs: which permutation acts on which axis of which leaf of a weight space."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree

Name: TypeAlias = str | int
Axis: TypeAlias = Name | None | tuple[Name | None, ...]
Axes: TypeAlias = tuple[Axis, ...]
Permutation: TypeAlias = dict[Name, Int[Array, " size"]]


@dataclasses.dataclass(frozen=True)
class LeafSpec:
    """The axes of one leaf of a weight space.

    Attributes:
      path: where the leaf is in the parameter tree, as in `"layer1/weight"`.
      shape: the leaf's shape.
      axes: one entry per axis: a name, `None` (not permuted), or a tuple of those for an axis that is
        the product of several (row-major, as `reshape` splits it).
      factors: `(name, size)` of every factor of every axis, in order.
    """

    path: str
    shape: tuple[int, ...]
    axes: Axes
    factors: tuple[tuple[Name | None, int], ...]

    @property
    def factored_shape(self) -> tuple[int, ...]:
        """The shape after every product axis is split into its factors."""
        return tuple(size for _, size in self.factors)


@dataclasses.dataclass(frozen=True)
class PermutationSpec:
    """For each axis of each leaf, the name of the permutation that acts on it.

    Axes with the same name permute together (Zhou, Finn & Harrison 2024, arXiv:2402.05232, Section 2).
    Immutable and hashable; made by `make_spec`. `print(spec)` shows it as a table.

    Attributes:
      leaves: one `LeafSpec` per leaf, sorted by path, so that the order does not depend on the container.
    """

    leaves: tuple[LeafSpec, ...]

    @functools.cached_property
    def sizes(self) -> dict[Name, int]:
        """The size of every name, in the order of first occurrence."""
        return {name: size for leaf in self.leaves for name, size in leaf.factors if name is not None}

    @functools.cached_property
    def paths(self) -> tuple[str, ...]:
        return tuple(leaf.path for leaf in self.leaves)

    def flatten(self, tree: PyTree, what: str = "tree") -> list[Any]:
        """The leaves of `tree` in the order of the spec.

        Raises:
          ValueError: the tree has other leaves than the spec. `what` names the tree in the message.
        """
        found = leaves_by_path(tree)
        _check_paths(self.paths, found, what)
        return [found[path] for path in self.paths]

    def unflatten(self, leaves: list[Any], like: PyTree) -> PyTree:
        """The inverse of `flatten`: a tree with the structure of `like`."""
        by_path = dict(zip(self.paths, leaves, strict=True))
        paths, treedef = _paths(like)
        return treedef.unflatten([by_path[path] for path in paths])

    def random_permutation(self, key: Array) -> Permutation:
        """A uniformly random element of the group: an index array per name.

        Args:
          key: a PRNG key.
        """
        keys = jax.random.split(key, max(len(self.sizes), 1))
        return {
            name: jax.random.permutation(k, size) for k, (name, size) in zip(keys, self.sizes.items(), strict=False)
        }

    def permute(self, permutation: Permutation, tree: PyTree) -> PyTree:
        """The group's action: reorders every named axis of every leaf.

        Args:
          permutation: an index array per name, as `random_permutation` returns.
          tree: leaves of shape `[*shape]` or, for features, `[*shape, channels]`.

        Returns:
          A tree of the same structure, `out[..., i, ...] = leaf[..., permutation[name][i], ...]`.
        """
        permuted = []
        for leaf, x in zip(self.leaves, self.flatten(tree), strict=True):
            shape = jnp.shape(x)
            if shape[: len(leaf.shape)] != leaf.shape:
                raise ValueError(
                    f"Leaf {show_path(leaf.path)} must have a shape that starts with {leaf.shape}, as in the "
                    f"spec, but has {shape}."
                )
            y = jnp.reshape(x, leaf.factored_shape + shape[len(leaf.shape) :])
            for axis, (name, _) in enumerate(leaf.factors):
                if name is not None:
                    y = jnp.take(y, permutation[name], axis=axis)
            permuted.append(jnp.reshape(y, shape))
        return self.unflatten(permuted, like=tree)

    def __str__(self) -> str:
        return _table(self)


def make_spec(tree: PyTree | None, params: PyTree, *, sizes: Mapping[Name, int] | None = None) -> PermutationSpec:
    """A permutation spec from nested tuples of names that mirror the parameters.

    Args:
      tree: mirrors `params`, with a tuple of axis names in the place of each array, as in the paper's
        Appendix A: strings or integers, `None` for an axis that is not permuted, a tuple of names for an axis
        that is a product (`("heads", "head_size")`), `()` for a scalar. Plain dicts may stand for any mapping,
        lists and tuples for each other. `None` gives every axis a name of its own: the largest group, always
        valid.
      params: the parameters; only shapes are read, so `jax.ShapeDtypeStruct` leaves are fine.
      sizes: sizes of names that stand only in product axes and do not follow from the other axes.

    Returns:
      The spec.

    Raises:
      ValueError: a leaf is missing or unknown, has another number of axes, or a name has two sizes.
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
        trie = _trie([keys for keys, _ in _keys_and_leaves(params)])
        _collect_axes(tree, trie, (), axes)
    for path, shape in shapes.items():
        _check_axes(path, axes[path], shape)
    known = _name_sizes(axes, shapes, dict(sizes or {}))
    return PermutationSpec(
        tuple(
            LeafSpec(path, shapes[path], axes[path], _factors(path, axes[path], shapes[path], known))
            for path in sorted(shapes, key=_natural)
        )
    )


def leaves_by_path(tree: PyTree) -> dict[str, Any]:
    """The leaves of a tree by their path, in the order of the tree."""
    return {_join(keys): leaf for keys, leaf in _keys_and_leaves(tree)}


def show_path(path: str) -> str:
    """A path as error messages print it."""
    return repr(path) if path else "(the bare array)"


# Paths. A key entry of jax becomes a plain string, so that equal trees in other containers have equal paths.


def _keys_and_leaves(tree: PyTree) -> list[tuple[tuple[str, ...], Any]]:
    return [(_plain_keys(keys), leaf) for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]]


def _plain_keys(keys: tuple[Any, ...]) -> tuple[str, ...]:
    # flax.nnx.State wraps each leaf in a Variable, which adds an attribute `value` to its path.
    if len(keys) > 1 and keys[-1] == jax.tree_util.GetAttrKey("value"):
        keys = keys[:-1]
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in keys)


def _join(keys: tuple[str, ...]) -> str:
    return "/".join(keys)


def _paths(tree: PyTree) -> tuple[list[str], Any]:
    return [_join(keys) for keys, _ in _keys_and_leaves(tree)], jax.tree.structure(tree)


def _natural(path: str) -> tuple[tuple[bool, int, str], ...]:
    # "block_10" after "block_2": a person reads the table, and depth is the natural order.
    parts: list[tuple[bool, int, str]] = []
    digits = ""
    for char in path + "/":
        if char.isascii() and char.isdigit():
            digits += char
            continue
        if digits:
            parts.append((False, int(digits), digits))
            digits = ""
        parts.append((True, 0, char))
    return tuple(parts)


def _check_paths(expected: tuple[str, ...], found: Mapping[str, Any], what: str) -> None:
    for path in expected:
        if path not in found:
            raise ValueError(
                f"The {what} must have the leaves of the permutation spec, but lacks {show_path(path)}. It has "
                f"{', '.join(map(show_path, found)) or 'no leaves'}. Make the spec from these parameters with "
                f"make_spec(tree, params)."
            )
    for path in found:
        if path not in expected:
            raise ValueError(
                f"The permutation spec has no entry for the leaf {show_path(path)} of the {what}. Add it to the "
                f"tree that make_spec is given."
            )


# Reading the tree of names along the structure of the parameters.

_Trie: TypeAlias = dict[str, "_Trie"]


def _trie(paths: list[tuple[str, ...]]) -> _Trie:
    root: _Trie = {}
    for keys in paths:
        node = root
        for key in keys:
            node = node.setdefault(key, {})
    return root


def _collect_axes(node: Any, trie: _Trie, keys: tuple[str, ...], axes: dict[str, Axes]) -> None:
    path = _join(keys)
    if not trie:
        if keys or not _is_empty_container(node):
            axes[path] = _as_axes(node, path)
        return
    children = _children(node, path)
    for key, subtrie in trie.items():
        if key not in children:
            raise ValueError(
                f"The spec must have an entry for the leaf or subtree {show_path(_join((*keys, key)))} of the "
                f"parameters, but has only {sorted(children)} there. Add a tuple of axis names for each leaf."
            )
        _collect_axes(children[key], subtrie, (*keys, key), axes)
    for key, child in children.items():
        if key not in trie and not _is_empty_container(child):
            raise ValueError(
                f"The spec has an entry {show_path(_join((*keys, key)))} that the parameters lack; they have "
                f"{sorted(trie)} there. Remove it, or mend its name."
            )


def _children(node: Any, path: str) -> dict[str, Any]:
    if isinstance(node, Mapping):
        return {str(key): value for key, value in node.items()}
    if isinstance(node, tuple) and hasattr(node, "_fields"):
        return {field: getattr(node, field) for field in node._fields}
    if isinstance(node, list | tuple):
        return {str(index): value for index, value in enumerate(node)}
    if dataclasses.is_dataclass(node):
        return {field.name: getattr(node, field.name) for field in dataclasses.fields(node)}
    raise ValueError(
        f"The spec must mirror the parameters, which have a subtree at {show_path(path)}, but has {node!r} there. "
        f"Put a dict, list, tuple or dataclass of the same keys in its place."
    )


def _is_empty_container(node: Any) -> bool:
    return node is None or (isinstance(node, Mapping | list | tuple) and not node)


def _as_axes(node: Any, path: str) -> Axes:
    if not isinstance(node, list | tuple):
        raise TypeError(
            f"The spec of leaf {show_path(path)} must be a tuple of axis names, one per axis, but is {node!r}. "
            f"Write ('out', 'in') for a matrix, () for a scalar."
        )
    return tuple(
        tuple(_as_name(name, path) for name in axis) if isinstance(axis, tuple) else _as_name(axis, path)
        for axis in node
    )


def _as_name(name: Any, path: str) -> Name | None:
    if isinstance(name, bool) or not (name is None or isinstance(name, str | int | np.integer)):
        raise TypeError(
            f"Axis names must be strings, integers or None, but leaf {show_path(path)} has {name!r} of type "
            f"{type(name).__name__}."
        )
    return int(name) if isinstance(name, np.integer) else name


# Sizes.


def _check_axes(path: str, axes: Axes, shape: tuple[int, ...]) -> None:
    if len(axes) != len(shape):
        raise ValueError(
            f"The spec of leaf {show_path(path)} must have one entry per axis: the leaf has shape {shape}, "
            f"{len(shape)} axes, but the spec has {len(axes)}: {axes}."
        )


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
        names = axis if isinstance(axis, tuple) else (axis,)
        unknown = [name for name in names if name is not None and name not in known]
        if unknown:
            raise ValueError(
                f"The size of {unknown[0]!r} in axis {index} of leaf {show_path(path)} does not follow from the "
                f"shapes. Give it: make_spec(..., sizes={{{unknown[0]!r}: ...}})."
            )
        rest = math.prod(known[name] for name in names if name is not None)
        fixed = sum(name is None for name in names)
        position = size // rest if fixed == 1 and rest else 1
        sizes = [position if name is None else known[name] for name in names]
        if fixed > 1 or math.prod(sizes) != size:
            raise ValueError(
                f"Axis {index} of leaf {show_path(path)} has size {size}, which must be the product of its "
                f"factors {dict(zip(map(repr, names), sizes, strict=True))} (at most one of them None)."
            )
        factors += zip(names, sizes, strict=True)
    return tuple(factors)


# Printing.


def _table(spec: PermutationSpec) -> str:
    rows = [("leaf", "shape", "axes")]
    rows += [(leaf.path or "(bare array)", str(leaf.shape), str(leaf.axes)) for leaf in spec.leaves]
    used: dict[Name, list[str]] = {name: [] for name in spec.sizes}
    for leaf in spec.leaves:
        for index, axis in enumerate(leaf.axes):
            for name in axis if isinstance(axis, tuple) else (axis,):
                if name is not None:
                    used[name].append(f"{leaf.path}[{index}]")
    names = [("name", "size", "acts on")]
    names += [(repr(name), str(size), ", ".join(used[name])) for name, size in spec.sizes.items()]
    return _columns(rows) + "\n\n" + _columns(names)


def _columns(rows: list[tuple[str, str, str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return "\n".join(f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c}" for a, b, c in rows)
