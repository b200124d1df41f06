"""A permutation spec as text: its leaves, and its names with what they act on."""

import shutil
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from optax_unf.spec.axes import Axis, Name, map_atoms, names_of

if TYPE_CHECKING:
    from optax_unf.spec.permutation_spec import PermutationSpec

# Longer names, such as inference gives, stand once, and a number stands for them elsewhere.
_LONG = 14
# A line, and the room in it for the last column, are not narrower.
_NARROWEST, _ROOM = 40, 30


class _Label:
    """Prints as a number."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def table(spec: "PermutationSpec", width: int | None = None) -> str:
    """Two tables: of the leaves with their axes, and of the names with what each acts on.

    Args:
      spec: the spec.
      width: of a line; by default that of the terminal. Longer paths are shortened in the middle.
    """
    width = width or shutil.get_terminal_size((120, 24)).columns
    long = [name for name in spec.sizes if len(repr(name)) > _LONG]
    labels = {name: f"#{number}" for number, name in enumerate(long, 1)}

    notes: dict[str, list[str]] = {leaf.path: [] for leaf in spec.leaves}
    for path, note in spec.notes:
        notes[path].append(note)
    leaves = [
        (_path(leaf.path), str(leaf.shape), "; ".join([_axes(leaf.axes, labels), *notes[leaf.path]]))
        for leaf in spec.leaves
    ]

    used: dict[Name, list[str]] = {name: [] for name in spec.sizes}
    for leaf in spec.leaves:
        for index, axis in enumerate(leaf.axes):
            for name in names_of(axis):
                used[name].append(f"{_path(leaf.path)}[{index}]")
    let_in = {"data or output": spec.io, "random draws": spec.noise, "spatial": spec.spatial}
    names = [
        (
            f"{labels[name]} {name!r}" if name in labels else repr(name),
            str(size),
            "; ".join([", ".join(used[name]), *(why for why in let_in if name in let_in[why])]),
        )
        for name, size in spec.sizes.items()
    ]
    parts = [("leaf", "shape", "axes"), *leaves], [("name", "size", "acts on"), *names]
    return "\n\n".join(_columns(rows, width) for rows in parts)


def _path(path: str) -> str:
    return path or "(bare array)"


def _axes(axes: tuple[Axis, ...], labels: Mapping[Name, str]) -> str:
    def shown(atom: Any) -> Any:
        return _Label(labels[atom]) if isinstance(atom, str | int) and atom in labels else atom

    return str(tuple(map_atoms(shown, axis) for axis in axes))


def _columns(rows: Sequence[tuple[str, str, str]], width: int) -> str:
    """Three columns, the last of which wraps; where there is no room for it, it goes below the others."""
    width = max(width, _NARROWEST)
    second = max(len(b) for _, b, _ in rows)
    rows = [(shortened(a, width - second - 2), b, c) for a, b, c in rows]
    first = max(len(a) for a, _, _ in rows)
    indent = first + second + 4
    longest_word = max((len(word) for _, _, c in rows for word in c.split()), default=0)
    longest = max(len(c) for _, _, c in rows)
    below = width - indent < max(longest_word, min(longest, _ROOM))
    if below:
        indent = 4
    lines = []
    for a, b, c in rows:
        wrapped = textwrap.wrap(c, width - indent, break_long_words=False, break_on_hyphens=False)
        last = ("\n" + " " * indent).join(shortened(line, width - indent) for line in wrapped)
        lines.append(f"{a:<{first}}  {b}\n{' ' * indent}{last}" if below else f"{a:<{first}}  {b:<{second}}  {last}")
    return "\n".join(lines)


def shortened(text: str, length: int) -> str:
    """The text, or its two ends with an ellipsis between them."""
    if len(text) <= length:
        return text
    tail = length // 2
    return f"{text[: length - tail - 1]}…{text[len(text) - tail :]}"
