"""Pictures of comparisons."""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from optax_unf.compare.results import Comparison
from optax_unf.meta.plot import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# One colour for an optimizer in all panels: learned ones first, as everybody looks for them.
_COLOURS = (
    "UNF",
    "UNF, tied",
    "Deep Sets",
    "NFN",
    "SGDM, meta-trained",
    "Adam",
    "Adam, cosine",
    "AdamW, cosine",
    "SGDM",
)
# The same optimizer behind a preconditioner: its colour, another line.
_PRECONDITIONED = ", preconditioned"
_COLUMNS = 2


def plot_comparisons(comparisons: Iterable[Comparison]) -> "Figure":
    """Draws training curves with bands of one standard error, one panel a task.

    Args:
      comparisons: such as `read_comparisons` finds in a folder.

    Returns:
      The figure; `figure.savefig(path)` writes it.

    Raises:
      ValueError: there is no comparison, or one has no results.
      ModuleNotFoundError: matplotlib is not installed.

    Example:
      >>> from optax_unf.compare.results import read_comparisons
      >>> plot_comparisons(read_comparisons("docs/results")).savefig("comparison.png")  # doctest: +SKIP
    """
    comparisons = list(comparisons)
    if not comparisons or not all(comparison.results for comparison in comparisons):
        found = ", ".join(f"{len(comparison.results)} of {comparison.task}" for comparison in comparisons)
        raise ValueError(
            f"A picture needs at least one comparison, and results in each, but there are {found or 'none'}. "
            f"compare_optimizers and read_comparisons give some."
        )
    columns = min(_COLUMNS, len(comparisons))
    rows = math.ceil(len(comparisons) / columns)
    figure = new_figure((5.5 * columns, 4.2 * rows))
    panels = figure.subplots(rows, columns, squeeze=False).flat
    handles: dict[str, Any] = {}
    for comparison, axes in zip(comparisons, panels, strict=False):
        shown = []
        for number, result in enumerate(sorted(comparison.results, key=lambda result: _rank(result.name))):
            rank = _rank(result.name)
            colour = f"C{rank if rank < len(_COLOURS) else rank + number}"
            x, mean, error = (
                np.asarray(values) for values in (result.curve.step, result.curve.mean, result.curve.error)
            )
            mean = np.where(np.isfinite(mean), mean, np.nan)
            style = ("-." if result.name.endswith(_PRECONDITIONED) else "-") if result.learned else "--"
            (handles[result.name],) = axes.plot(x, mean, style, color=colour, label=result.name, linewidth=1.4)
            band = np.where(np.isfinite(error), error, 0.0)
            axes.fill_between(x, mean - band, mean + band, color=colour, alpha=0.2, linewidth=0)
            shown.append(mean[len(mean) // 20 :])
        axes.set(
            title=f"{comparison.task} ({comparison.seeds} seeds)",
            xlabel="inner step",
            ylabel="training loss (mean of 50 steps)",
            ylim=_limits(np.concatenate(shown)),
        )
    for axes in panels:
        axes.set_axis_off()
    in_order = sorted(handles, key=_rank)
    figure.legend([handles[name] for name in in_order], in_order, loc="outside lower center", ncols=2 * columns)
    return figure


def _rank(name: str) -> int:
    name = name.removesuffix(_PRECONDITIONED)
    return _COLOURS.index(name) if name in _COLOURS else len(_COLOURS)


def _limits(values: np.ndarray) -> tuple[float, float] | None:
    """From the lowest value to what all but the first steps and what diverged need."""
    values = values[np.isfinite(values)]
    if not values.size:
        return None
    low, high = values.min(), np.quantile(values, 0.97)
    margin = 0.05 * (high - low) or 0.05
    return low - margin, high + margin
