"""Pictures of meta-training runs and of comparisons."""

import itertools
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from optax_unf.meta.results import Comparison

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
# The same optimizer with gradients by entry: its colour, another line.
_BY_ENTRY = ", by entry"
_COLUMNS = 2


def plot_run(folder: str | Path) -> "Figure":
    r"""Draws the curves of a meta-training run: outer loss, gradient norm, and losses on fresh inner runs.

    Args:
      folder: of the run, with its `metrics.jsonl`.

    Returns:
      The figure; `figure.savefig(path)` writes it.

    Raises:
      FileNotFoundError: the folder has no `metrics.jsonl`.
      ModuleNotFoundError: matplotlib is not installed.

    Example:
      >>> import tempfile
      >>> folder = Path(tempfile.mkdtemp())
      >>> _ = (folder / "metrics.jsonl").write_text(
      ...     '{"step": 1, "stage": 0, "loss": 2.0, "grad_norm": 0.1}\n{"step": 1, "stage": 0, "final_loss": 1.0}\n'
      ... )
      >>> len(plot_run(folder).axes)
      3
    """
    path = Path(folder, "metrics.jsonl")
    if not path.is_file():
        raise FileNotFoundError(
            f"The folder of a meta-training run has a file metrics.jsonl, but {folder} has none. Make one: optax-unf "
            f"meta-train --task TASK --out {folder}"
        )
    # A line of a run that is under way may not be whole.
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    steps = [record for record in records if "loss" in record]
    evaluations = [record for record in records if "final_loss" in record]
    figure = new_figure((11, 3.4))
    outer, norm, fresh = figure.subplots(1, 3)
    for axes, name, label in ((outer, "loss", "loss of the truncations (nats)"), (norm, "grad_norm", "gradient norm")):
        x, y = _column(steps, name)
        axes.plot(x, y, color="C0", alpha=0.3, linewidth=0.8)
        window = max(1, len(y) // 50)
        averaged = np.convolve(y, np.ones(window) / window, "valid") if len(y) else y
        axes.plot(x[window - 1 :], averaged, color="C0")
        axes.set(xlabel="outer step", ylabel=label)
    if any(y > 0 for y in _column(steps, "grad_norm")[1]):
        norm.set_yscale("log")
    names = [name for name in dict.fromkeys(name for record in evaluations for name in record) if "loss" in name]
    for name in names:
        fresh.plot(*_column(evaluations, name), marker=".", label=name.replace("_", " "))
    fresh.set(xlabel="outer step", ylabel="loss of fresh inner runs (nats)")
    if names:
        fresh.legend(fontsize="small")
    for before, after in itertools.pairwise(steps):
        if before["stage"] != after["stage"]:
            for axes in (outer, norm, fresh):
                axes.axvline(before["step"], color="0.7", linewidth=0.8, zorder=0)
    figure.suptitle(Path(folder).absolute().name)
    return figure


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
      >>> from optax_unf.meta.results import read_comparisons
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
            style = ("-." if result.name.endswith(_BY_ENTRY) else "-") if result.learned else "--"
            (handles[result.name],) = axes.plot(x, mean, style, color=colour, label=result.name, linewidth=1.4)
            band = np.where(np.isfinite(error), error, 0.0)
            axes.fill_between(x, mean - band, mean + band, color=colour, alpha=0.2, linewidth=0)
            shown.append(mean[len(mean) // 20 :])
        axes.set(
            title=f"{comparison.task} ({comparison.seeds} seeds)",
            xlabel="inner step",
            ylabel="training loss (nats, mean of 50 steps)",
            ylim=_limits(np.concatenate(shown)),
        )
    for axes in panels:
        axes.set_axis_off()
    in_order = sorted(handles, key=_rank)
    figure.legend([handles[name] for name in in_order], in_order, loc="outside lower center", ncols=2 * columns)
    return figure


def new_figure(size: tuple[float, float]) -> "Figure":
    """An empty figure of so many inches.

    Raises:
      ModuleNotFoundError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Plotting requires matplotlib, which is not installed. Run: pip install 'optax-unf[cli]'."
        ) from error
    return Figure(figsize=size, layout="constrained", dpi=150)


def _column(records: list[dict[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of those records in which the value is a number."""
    pairs = [(record["step"], record[name]) for record in records if record.get(name) is not None]
    steps, values = np.array(pairs, np.float64).reshape(-1, 2).T
    return steps, values


def _rank(name: str) -> int:
    name = name.removesuffix(_BY_ENTRY)
    return _COLOURS.index(name) if name in _COLOURS else len(_COLOURS)


def _limits(values: np.ndarray) -> tuple[float, float] | None:
    """From the lowest value to what all but the first steps and what diverged need."""
    values = values[np.isfinite(values)]
    if not values.size:
        return None
    low, high = values.min(), np.quantile(values, 0.97)
    margin = 0.05 * (high - low) or 0.05
    return low - margin, high + margin
