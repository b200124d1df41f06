"""Paths of the leaves of a tree: plain strings, the same for equal trees in other containers."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree


def leaves_by_path(tree: PyTree) -> dict[str, Any]:
    """The leaves of a tree by their path, in the order of the tree.

    Raises:
      ValueError: two leaves have one path.
    """
    leaves: dict[str, Any] = {}
    for keys, leaf in _keys_and_leaves(tree):
        path = join_path(keys)
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


def _keys_and_leaves(tree: PyTree) -> Iterator[tuple[tuple[str, ...], Any]]:
    for keys, node in jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_box)[0]:
        plain = tuple(plain_key(key) for key in keys)
        if _is_box(node):
            yield from ((plain + inner, leaf) for inner, leaf in _keys_and_leaves(unboxed(node)))
        else:
            yield plain, node


def plain_key(key: Any) -> str:
    """A key entry of a jax path as a plain string."""
    return jax.tree_util.keystr((key,), simple=True)


def children(node: Any) -> list[tuple[tuple[Any, ...], Any]]:
    """The children of one pytree node, with a path of one key; a leaf is its own only child, with an empty path."""
    return jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda x: x is not node)[0]


def is_leaf(node: Any) -> bool:
    """Whether a node is a leaf of every tree it is in."""
    return jax.tree_util.all_leaves([node])


def _is_box(node: Any) -> bool:
    # flax.nnx.Variable, flax.linen.Partitioned: they add nothing but an attribute `value` to the path.
    if isinstance(node, jax.Array | np.ndarray | dict | list | tuple):
        return False
    found = children(node)
    return len(found) == 1 and found[0][0] == (jax.tree_util.GetAttrKey("value"),)


def unboxed(node: Any) -> Any:
    """What a box such as `flax.nnx.Variable` holds, or the node itself."""
    while _is_box(node):
        ((_, node),) = children(node)
    return node


def join_path(keys: tuple[str, ...]) -> str:
    """The path of these keys."""
    return "/".join(keys)


def natural_order(path: str) -> tuple[tuple[bool, int, str], ...]:
    """A sort key that puts `block_10` after `block_2`."""
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
