"""Pictures of specs."""

import sys

import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from optax_unf import Concat, make_spec

PARAMS = {
    "skip": {"w": jnp.zeros((3, 4))},
    "a": {"w": jnp.zeros((3, 5)), "b": jnp.zeros(5)},
    "rnn": {"w": jnp.zeros((9, 12)), "h": jnp.zeros((6, 12)), "scale": jnp.zeros(())},
}
AXES = {
    "skip": {"w": (None, 0)},
    "a": {"w": (None, "a"), "b": ("a",)},
    "rnn": {"w": (Concat("a", 0), (None, "h")), "h": ("h", (None, "h")), "scale": ()},
}


def rows_with_text(ax):
    """The texts in each row, from left to right."""
    rows = {}
    for text in ax.texts:
        x, y = text.get_position()
        rows.setdefault(y, []).append((x, text.get_text(), mpl.colors.to_hex(text.get_color())))
    return [sorted(row) for _, row in sorted(rows.items())]


@pytest.mark.parametrize("given", [False, True], ids=["new figure", "given axes"])
def test_every_leaf_is_a_row_and_every_name_a_line(given, tmp_path):
    spec = make_spec(AXES, PARAMS)
    figure = Figure(figsize=(4, 1))
    ax = spec.plot(figure.add_subplot()) if given else spec.plot()
    _, *rows = rows_with_text(ax)
    assert len(rows) == len(spec.leaves) == 6
    assert [row[0][1] for row in rows] == list(spec.paths)
    by_path = {row[0][1]: [text for _, text, _ in row[1:]] for row in rows}
    assert by_path["a/b"] == ["(5,)", "0", "(", "a", ")"]
    assert by_path["rnn/h"] == ["(6, 12)", "1", "0,1", *["(", "h", ", ", "2", "*", "h", ")"]]
    assert by_path["rnn/scale"] == ["()", "(", ")"]
    assert "".join(by_path["rnn/w"][-9:]) == "(a + 0, 2*h)"

    # A line from the first to the last leaf of a name, in the colour that its text has.
    spans = {line.get_color(): tuple(line.get_ydata()) for line in ax.lines}
    colours = {text: colour for row in rows for _, text, colour in row if text in ("a", "h")}
    where = {
        name: [i for i, path in enumerate(spec.paths) if path in paths]
        for name, paths in {"a": ("a/b", "a/w", "rnn/w"), "h": ("rnn/h", "rnn/w")}.items()
    }
    assert len(spans) == 3
    for name, at in where.items():
        assert {mpl.colors.to_hex(c): s for c, s in spans.items()}[colours[name]] == (min(at), max(at))

    # Everything lies inside of the axes.
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    assert all(left <= x < right and top < y < bottom for x, y in (t.get_position() for t in ax.texts))
    ax.figure.savefig(tmp_path / "spec.png")


def test_the_figure_grows_with_the_number_of_leaves():
    specs = [make_spec(None, {f"w{i}": jnp.zeros(2) for i in range(n)}) for n in (0, 9, 19)]
    heights = [spec.plot().figure.get_size_inches()[1] for spec in specs]
    assert heights[2] == pytest.approx(2 * heights[1])


def test_names_one_after_the_other_share_a_column():
    params = {f"w{i}": jnp.zeros((3, 3)) for i in range(4)}
    ax = make_spec({"w0": ("a", "b"), "w1": ("a", "b"), "w2": ("c", None), "w3": ("c", "d")}, params).plot()
    lines = [(tuple(line.get_ydata()), line.get_xdata()[0]) for line in ax.lines]
    (first, left), (second, right), (third, below_left), (fourth, below_right) = lines
    assert [first, second, third, fourth] == [(0, 1), (0, 1), (2, 3), (3, 3)]
    assert left == below_left < right == below_right


@pytest.mark.parametrize("dpi", [50, 72, 150])
def test_long_names_end_before_what_follows(dpi):
    """By their pixels, whatever the resolution."""
    long = "params/a_very_long_name_of_a_hidden_fully_connected_layer_number_{}/kernel"
    params = {long.format(n): jnp.zeros((2, 2)) for n in range(2)}
    ax = make_spec({path: (f"{path}:0", f"{path}:1") for path in params}, params).plot()
    figure = ax.figure
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    everything = [*ax.texts, *ax.lines, *ax.patches]
    for artist in everything:
        artist.set_visible(False)
    ends, starts = [], []
    row = sorted((text for text in ax.texts if text.get_position()[1] == 0), key=lambda text: text.get_position()[0])
    for text in row:
        text.set_visible(True)
        canvas.draw()
        ink = np.flatnonzero((np.asarray(canvas.buffer_rgba())[..., :3] < 255).any((0, 2)))
        ends.append(ink.max())
        starts.append(ax.transData.transform(text.get_position())[0])
        text.set_visible(False)
    assert sum(len(text.get_text()) > 70 for text in row) == 3
    # The markers are centred where they are.
    pairs = [
        (end, start) for end, start, text in zip(ends, starts[1:], row[1:], strict=False) if text.get_ha() == "left"
    ]
    assert len(pairs) >= 6
    assert all(end <= start for end, start in pairs)
    assert ends[-1] < figure.bbox.width


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'optax-unf\[demo\]'"):
        make_spec(AXES, PARAMS).plot()
