"""Pictures of meta-training runs."""

import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_run(folder: str | Path) -> "Figure":
    r"""Draws the curves of a meta-training run: outer loss, gradient norm, and losses on fresh inner runs.

    Dark lines are running means over the outer steps in which truncations go through a whole inner run. Where
    `optax-unf evaluate FOLDER` has been called, Adam's final loss is a line, too.

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
    periods = _periods(_read(Path(folder, "config.json"))) or [1] * (1 + max((x["stage"] for x in steps), default=0))
    figure = new_figure((11, 3.4))
    outer, norm, fresh = figure.subplots(1, 3)
    for axes, name, label in ((outer, "loss", "loss of the truncations"), (norm, "grad_norm", "gradient norm")):
        axes.plot(*_column(steps, name), color="C0", alpha=0.3, linewidth=0.8)
        for stage, period in enumerate(periods):
            axes.plot(*_averaged(*_column([x for x in steps if x["stage"] == stage], name), period), color="C0")
        axes.set(xlabel="outer step", ylabel=label)
    if any(y > 0 for y in _column(steps, "grad_norm")[1]):
        norm.set_yscale("log")
    names = [name for name in dict.fromkeys(name for record in evaluations for name in record) if "loss" in name]
    for name in names:
        fresh.plot(*_column(evaluations, name), marker=".", label=name.replace("_", " "))
    fresh.set(xlabel="outer step", ylabel="loss of fresh inner runs")
    if (level := _read(Path(folder, "adam.json")).get("final_loss")) is not None:
        fresh.axhline(level, color="0.4", linestyle="--", label="final loss of Adam, cosine, best rate")
    if names:
        fresh.legend(fontsize="small")
    for before, after in itertools.pairwise(steps):
        if before["stage"] != after["stage"]:
            for axes in (outer, norm, fresh):
                axes.axvline(before["step"], color="0.7", linewidth=0.8, zorder=0)
    figure.suptitle(Path(folder).absolute().name)
    return figure


def _periods(config: dict[str, Any]) -> list[int]:
    """Of each stage, the outer steps in which its truncations go through a whole inner run."""
    stages = config.get("stages", [])
    return [max(1, config["horizon"] // stage["estimator"].get("truncation", config["horizon"])) for stage in stages]


def _averaged(x: np.ndarray, y: np.ndarray, period: int) -> tuple[np.ndarray, np.ndarray]:
    """Running means: inner runs are staggered, and the loss rises and falls with their mean age."""
    if not len(y):
        return x, y
    window = min(max(period, len(y) // 50), len(y))
    return x[window - 1 :], np.convolve(y, np.ones(window) / window, "valid")


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


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
