"""A picture of a permutation spec: a row per leaf, and for each name a line that ties the leaves it acts on."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from optax_unf.spec.axes import Axis, Concat, Name, atoms_of, factors_of
from optax_unf.spec.leaf import LeafSpec
from optax_unf.spec.permutation_spec import PermutationSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FONT, _LINE = 8.0, 1.9  # size in points; rows are so many times as high
_CHARACTER = 0.605  # width of a character of the monospace font, relative to its size
_LANE = 3  # width of a column of markers, in characters
_FIXED = "0.55"  # grey
_COLOURS = ("C0", "C1", "C2", "C3", "C4", "C5", "C6", "C8", "C9")


def plot_spec(spec: PermutationSpec, ax: "Axes | None" = None) -> "Axes":
    """Draws a permutation spec.

    Each leaf is a row: its path, its shape, a marker for each name that acts on it (the number in it is the axis) and
    its axes, where `*` is a product, `+` a concatenation and a grey number a part that is fixed, of that size. A line
    ties all leaves that one name acts on. A column may serve several names one after the other.

    Args:
      spec: the spec.
      ax: matplotlib axes to draw on. By default those of a new figure with room for every row.

    Returns:
      The axes; `ax.figure.savefig(path)` writes the picture.

    Raises:
      ModuleNotFoundError: matplotlib is not installed.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_unf import make_spec
      >>> params = {"w1": jnp.zeros((3, 5)), "w2": jnp.zeros((5, 2))}
      >>> ax = make_spec({"w1": (None, "hidden"), "w2": ("hidden", None)}, params).plot()
      >>> ax.figure.savefig("spec.png")  # doctest: +SKIP
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.patheffects import Normal
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Plotting a spec requires matplotlib, which is not installed. Run: pip install 'optax-unf[demo]'."
        ) from error

    markers = {(name, row): axes for row, leaf in enumerate(spec.leaves) for name, axes in _markers(leaf).items()}
    rows: dict[Name, list[int]] = {}
    for name, row in markers:
        if name is not None:
            rows.setdefault(name, []).append(row)
    lanes = _assign(rows, range(len(rows)), reuse_first=True)
    colours = _assign(rows, range(len(_COLOURS)), reuse_first=False)
    shown = [[*_pieces(leaf)] for leaf in spec.leaves]

    # Everything is placed in units of characters and rows.
    shape_at = _longest(_path(leaf) for leaf in spec.leaves) + 2
    lanes_at = shape_at + _longest(str(leaf.shape) for leaf in spec.leaves) + _LANE + 1
    axes_at = lanes_at + _LANE * (2 + max(lanes.values(), default=-1))
    width = axes_at + _longest("".join(text for text, _ in pieces) for pieces in shown) + 1
    height = len(spec.leaves) + 1.0
    if ax is None:
        inches = _FONT / 72
        figure = Figure(figsize=(width * _CHARACTER * inches, height * _LINE * inches), dpi=150)
        ax = figure.add_axes((0, 0, 1, 1))
    size = _fit(ax, width, height)

    def write(x: float, y: float, text: str, **style: Any) -> None:
        # As an outline it has its width at any resolution; the characters of fonts are rounded to whole pixels.
        style |= {"family": "monospace", "va": "center_baseline", "path_effects": [Normal()]}
        ax.text(x, y, text, fontsize=size, **style)

    def lane(name: Name | None) -> float:
        return lanes_at + _LANE * (0 if name is None else 1 + lanes[name])

    def colour(name: Name | None) -> str:
        return _FIXED if name is None else _COLOURS[colours[name]]

    for name, where in rows.items():
        ax.plot([lane(name)] * 2, [where[0], where[-1]], color=colour(name), linewidth=size / 6, zorder=1)
    for x, heading in ((0.5, "leaf"), (shape_at, "shape"), (axes_at, "axes")):
        write(x, -1, heading, color=_FIXED, style="italic")
    module, shaded = None, True
    for row, (leaf, pieces) in enumerate(zip(spec.leaves, shown, strict=True)):
        if module != (module := leaf.path.rpartition("/")[0]):
            shaded = not shaded
        if shaded:
            ax.axhspan(row - 0.5, row + 0.5, color="0.95", linewidth=0, zorder=0)
        write(0.5, row, _path(leaf))
        write(shape_at, row, str(leaf.shape), color=_FIXED)
        x = axes_at
        for text, name in pieces:
            write(x, row, text, color="black" if text.strip("*+(), ") == "" else colour(name))
            x += len(text)
    for (name, row), axes in markers.items():
        box = {"boxstyle": "round,pad=0.2,rounding_size=0.55", "facecolor": colour(name), "edgecolor": "none"}
        marker = {"fontsize": size * 0.75, "color": "white", "ha": "center", "va": "center_baseline", "bbox": box}
        ax.text(lane(name), row, ",".join(map(str, axes)), **marker)
    return ax


def _path(leaf: LeafSpec) -> str:
    return leaf.path or "(bare array)"


def _longest(texts: Iterable[str]) -> int:
    return max(map(len, texts), default=0)


def _fit(ax: "Axes", width: float, height: float) -> float:
    """Makes characters and rows the units of the axes, and returns the largest font, in points, with which all fit."""
    box, points = ax.get_window_extent(), 72 / ax.figure.dpi
    columns, lines = box.width * points / _CHARACTER, box.height * points / _LINE  # of a font of one point
    size = min(_FONT, columns / width, lines / height)
    ax.set(xlim=(0, columns / size), ylim=(lines / size - 1.5, -1.5))
    ax.set_axis_off()
    return size


def _markers(leaf: LeafSpec) -> dict[Name | None, list[int]]:
    """For each name on a leaf, and for `None` if a part is fixed, the axes that it is on."""
    markers: dict[Name | None, list[int]] = {}
    for index, axis in enumerate(leaf.axes):
        for name in dict.fromkeys(atom if isinstance(atom, str | int) else None for atom in atoms_of(axis)):
            markers.setdefault(name, []).append(index)
    return markers


def _assign(rows: dict[Name, list[int]], slots: range, reuse_first: bool) -> dict[Name, int]:
    """A slot for each name, with names that overlap in different slots while there are enough.

    Takes the first free slot, so that few are used, or the one that has been free for longest.
    """
    busy_until = dict.fromkeys(slots, -1)
    chosen = {}
    for name, where in rows.items():
        free = [slot for slot in slots if busy_until[slot] < where[0]] if reuse_first else []
        chosen[name] = free[0] if free else min(slots, key=lambda slot: busy_until[slot])
        busy_until[chosen[name]] = where[-1]
    return chosen


def _pieces(leaf: LeafSpec) -> Iterator[tuple[str, Name | None]]:
    """The axes of a leaf as text in pieces, each with the name that it is."""
    sized = iter(leaf.factors)

    def pieces(axis: Axis, inside: bool) -> Iterator[tuple[str, Name | None]]:
        factors = factors_of(axis)
        for i, factor in enumerate(factors):
            if i:
                yield "*", None
            if isinstance(factor, Concat):
                bracket = inside or len(factors) > 1
                yield from [("(", None)] * bracket
                for j, part in enumerate(factor.parts):
                    if j:
                        yield " + ", None
                    yield from pieces(part, True)
                yield from [(")", None)] * bracket
            else:
                name, size = next(sized)
                yield (str(size) if name is None else str(name)), name

    yield "(", None
    for index, axis in enumerate(leaf.axes):
        if index:
            yield ", ", None
        yield from pieces(axis, False)
    yield ")", None
