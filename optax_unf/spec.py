"""Permutation specs: which permutation acts on which axis of which leaf of a weight space."""

import dataclasses
import functools
import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree

Name: TypeAlias = str | int
Axis: TypeAlias = Name | tuple[Name | None, ...] | None
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

    @property
    def sizes(self) -> dict[Name, int]:
        """The size of every name, in the order of first occurrence."""
        return {name: size for leaf in self.leaves for name, size in leaf.factors if name is not None}

    @functools.cached_property
    def paths(self) -> tuple[str, ...]:
        """The path of every leaf."""
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
        found = leaves_by_path(like)
        _check_paths(self.paths, found, "tree")
        return jax.tree.unflatten(jax.tree.structure(like), [by_path[path] for path in found])

    def random_permutation(self, key: Array) -> Permutation:
        """A uniformly random element of the group: an index array per name.

        Args:
          key: a PRNG key.
        """
        keys = jax.random.split(key, max(len(self.sizes), 1))
        # jax cannot sort the keys of a plain dict where strings and integers are mixed.
        return OrderedDict(
            (name, jax.random.permutation(k, size)) for k, (name, size) in zip(keys, self.sizes.items(), strict=False)
        )

    def invert(self, permutation: Permutation) -> Permutation:
        """The inverse element of the group: what `permute` did with `permutation`, it undoes with this."""
        _check_permutation(self.sizes, permutation)
        return OrderedDict((name, jnp.argsort(permutation[name])) for name in self.sizes)

    def permute(self, permutation: Permutation, tree: PyTree) -> PyTree:
        """The group's action: reorders every named axis of every leaf.

        Args:
          permutation: an index array per name, as `random_permutation` returns.
          tree: leaves of shape `[*shape]` or, for features, `[*shape, channels]`.

        Returns:
          A tree of the same structure, `out[..., i, ...] = leaf[..., permutation[name][i], ...]`.

        Raises:
          ValueError: the tree or the permutation does not fit the spec.

        Example:
          >>> import jax, jax.numpy as jnp
          >>> params = {"w": jnp.arange(6.0).reshape(3, 2)}
          >>> spec = make_spec({"w": ("out", "in")}, params)
          >>> g = spec.random_permutation(jax.random.key(0))
          >>> there_and_back = spec.permute(spec.invert(g), spec.permute(g, params))
          >>> bool((there_and_back["w"] == params["w"]).all())
          True
        """
        _check_permutation(self.sizes, permutation)
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
            for path in sorted(shapes, key=_natural)
        )
    )


def leaves_by_path(tree: PyTree) -> dict[str, Any]:
    """The leaves of a tree by their path, in the order of the tree.

    Raises:
      ValueError: two leaves have one path.
    """
    leaves: dict[str, Any] = {}
    for keys, leaf in _keys_and_leaves(tree):
        path = _join(keys)
        if path in leaves:
            raise ValueError(
                f"Leaves must have distinct paths, but two of this tree have the path {show_path(path)}, by keys that "
                f"contain '/' or are equal as strings. Rename one of them."
            )
        leaves[path] = leaf
    return leaves


def show_path(path: str) -> str:
    """A path as error messages print it."""
    return repr(path) if path else "(the bare array)"


# Paths. A key entry of jax becomes a plain string, so that equal trees in other containers have equal paths.


def _keys_and_leaves(tree: PyTree) -> Iterator[tuple[tuple[str, ...], Any]]:
    for keys, node in jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_box)[0]:
        plain = tuple(_plain_key(key) for key in keys)
        if _is_box(node):
            yield from ((plain + inner, leaf) for inner, leaf in _keys_and_leaves(_unboxed(node)))
        else:
            yield plain, node


def _plain_key(key: Any) -> str:
    return jax.tree_util.keystr((key,), simple=True)


def _children(node: Any) -> list[tuple[tuple[Any, ...], Any]]:
    """The children of one pytree node, with a path of one key; a leaf is its own only child, with an empty path."""
    return jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda x: x is not node)[0]


def _is_leaf(node: Any) -> bool:
    return jax.tree_util.all_leaves([node])


def _is_box(node: Any) -> bool:
    # flax.nnx.Variable, flax.linen.Partitioned: they add nothing but an attribute `value` to the path.
    if isinstance(node, jax.Array | np.ndarray | dict | list | tuple):
        return False
    children = _children(node)
    return len(children) == 1 and children[0][0] == (jax.tree_util.GetAttrKey("value"),)


def _unboxed(node: Any) -> Any:
    while _is_box(node):
        ((_, node),) = _children(node)
    return node


def _join(keys: tuple[str, ...]) -> str:
    return "/".join(keys)


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


def _check_permutation(sizes: Mapping[Name, int], permutation: Permutation) -> None:
    for name, size in sizes.items():
        found = jnp.shape(permutation[name]) if name in permutation else "none"
        if found != (size,):
            raise ValueError(
                f"The permutation must have an index array of shape ({size},) for the name {name!r}, but has {found}. "
                f"Draw it with the random_permutation of this spec."
            )


# Reading the tree of names along the structure of the parameters.

_Trie: TypeAlias = dict[str, "_Trie"] | None  # a leaf is None


def _trie(tree: PyTree) -> _Trie:
    node = _unboxed(tree)
    if _is_leaf(node):
        return None
    return {_plain_key(key): _trie(child) for (key,), child in _children(node)}


def _is_empty(trie: _Trie) -> bool:
    return trie is not None and all(_is_empty(child) for child in trie.values())


def _collect_axes(node: Any, trie: _Trie, keys: tuple[str, ...], axes: dict[str, Axes]) -> None:
    if _is_empty(trie):
        return
    node, path = _unboxed(node), _join(keys)
    if trie is None:
        axes[path] = _as_axes(node, path)
        return
    entries = _entries(node, path)
    for key, child in trie.items():
        if key in entries:
            _collect_axes(entries[key], child, (*keys, key), axes)
        elif not _is_empty(child):
            raise ValueError(
                f"The spec must have an entry for the leaf or subtree {show_path(_join((*keys, key)))} of the "
                f"parameters, but has only {sorted(entries)} there. Add a tuple of axis names for each leaf."
            )
    for key, entry in entries.items():
        if key not in trie and not _names_nothing(entry):
            raise ValueError(
                f"The spec has an entry {show_path(_join((*keys, key)))} that the parameters lack; they have "
                f"{sorted(trie)} there. Remove it, or mend its name."
            )


def _names_nothing(entry: Any) -> bool:
    return entry is None or (isinstance(entry, Mapping | list) and not entry)


def _entries(node: Any, path: str) -> dict[str, Any]:
    """The children of a node of the tree of names."""
    if isinstance(node, Mapping):
        pairs = [(str(key), value) for key, value in node.items()]
    elif _is_leaf(node):
        raise ValueError(
            f"The spec must mirror the parameters, which have a subtree at {show_path(path)}, but has {node!r} there. "
            f"Put a dict, list, tuple or dataclass of the same keys in its place."
        )
    else:
        pairs = [(_plain_key(key), value) for (key,), value in _children(node)]
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
    used = {name for leaf_axes in axes.values() for axis in leaf_axes for name in _names(axis)} - {None}
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


def _names(axis: Axis) -> tuple[Name | None, ...]:
    return axis if isinstance(axis, tuple) else (axis,)


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
        names = _names(axis)
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


# Printing.


def _table(spec: PermutationSpec) -> str:
    rows = [("leaf", "shape", "axes")]
    rows += [(leaf.path or "(bare array)", str(leaf.shape), str(leaf.axes)) for leaf in spec.leaves]
    used: dict[Name, list[str]] = {name: [] for name in spec.sizes}
    for leaf in spec.leaves:
        for index, axis in enumerate(leaf.axes):
            for name in _names(axis):
                if name is not None:
                    used[name].append(f"{leaf.path or '(bare array)'}[{index}]")
    names = [("name", "size", "acts on")]
    names += [(repr(name), str(size), ", ".join(used[name])) for name, size in spec.sizes.items()]
    return _columns(rows) + "\n\n" + _columns(names)


def _columns(rows: list[tuple[str, str, str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return "\n".join(f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c}" for a, b, c in rows)
