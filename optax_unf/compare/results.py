"""Results of a comparison of optimizers on one task, in memory and on disk."""

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from optax_unf._files import write_text

_FORMAT = "optax_unf comparison 1"


@dataclasses.dataclass(frozen=True)
class Curve:
    """A training curve, smoothed and thinned out.

    Attributes:
      step: inner steps done.
      mean: mean over seeds of the training loss, each the mean of the last 50 steps before `step`.
      error: its standard error.
    """

    step: tuple[int, ...]
    mean: tuple[float, ...]
    error: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Result:
    """What a comparison knows of one optimizer; losses are infinite where a run diverged.

    Attributes:
      name: of the optimizer, such as `"UNF"`.
      learned: whether it was meta-trained.
      settings: all that the numbers depend on.
      training_loss: for each seed, the mean over the last 50 inner steps.
      validation_loss: for each seed, the held-out loss of the final parameters.
      seconds_per_step: median wall time of a training step.
      steps_to_adam: inner steps until the smoothed mean curve reaches the final loss of Adam; `None` if it never does.
      curve: the training curve.
      rate: the best rate of the grid, of those that have one.
      tuning: pairs of a rate and its mean final training loss over the tuning seeds.
    """

    name: str
    learned: bool
    settings: dict[str, Any]
    training_loss: tuple[float, ...]
    validation_loss: tuple[float, ...]
    seconds_per_step: float
    steps_to_adam: int | None
    curve: Curve
    rate: float | None = None
    tuning: tuple[tuple[float, float], ...] = ()

    @property
    def seconds_to_adam(self) -> float | None:
        """Wall time until the final loss of Adam is reached."""
        return None if self.steps_to_adam is None else self.steps_to_adam * self.seconds_per_step

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Result":
        """The inverse of `dataclasses.asdict`, after a way through JSON."""
        losses = {name: _infinite_where_null(record[name]) for name in ("training_loss", "validation_loss")}
        curve = {name: _infinite_where_null(values) for name, values in record["curve"].items()}
        tuning = tuple((rate, *_infinite_where_null([loss])) for rate, loss in record["tuning"])
        return cls(**{**record, **losses, "curve": Curve(**curve), "tuning": tuning})


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Optimizers on one task.

    Attributes:
      task: the task's name.
      description: its sizes, in words.
      steps: inner steps of each run.
      seeds: fresh inner runs of each optimizer.
      results: one for each optimizer.
      made: how: command, commit, date, machine, versions.
    """

    task: str
    description: str
    steps: int
    seeds: int
    results: tuple[Result, ...]
    made: dict[str, Any]

    @property
    def reference(self) -> Result | None:
        """The result of UNF; without it, of the first learned optimizer; `None` if there is none."""
        learned = [result for result in self.results if result.learned]
        return next((result for result in learned if result.name == "UNF"), learned[0] if learned else None)


def mean_and_error(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """The mean and its standard error, which is NaN of less than two values; both infinite if a value is.

    Example:
      >>> mean_and_error([1.0, 3.0])
      (2.0, 1.0)
      >>> mean_and_error([1.0, float("inf")])
      (inf, inf)
    """
    array = np.asarray(values, np.float64)
    if not np.isfinite(array).all():
        return math.inf, math.inf
    error = array.std(ddof=1) / math.sqrt(len(array)) if len(array) > 1 else math.nan
    return float(array.mean()), float(error)


def write_comparison(folder: str | Path, comparison: Comparison) -> Path:
    """Writes `FOLDER/TASK.json`, under a temporary name first; numbers that are not finite become `null`."""
    path = Path(folder, f"{comparison.task}.json")
    text = json.dumps(_null_where_infinite({"format": _FORMAT, **dataclasses.asdict(comparison)}), indent=1)
    # Lists of numbers on one line each.
    text = re.sub(r"\[[-\d\s.,eE+nul]*\]", lambda match: " ".join(match[0].split()), text)
    write_text(path, text + "\n")
    return path


def read_comparison(path: str | Path) -> Comparison | None:
    """The comparison in a file; `None` if there is no such file, or it holds something else.

    Raises:
      ValueError: the file is no JSON: what was measured might be in it, and must not be written over.
    """
    path = Path(path)
    try:
        record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except ValueError as error:
        raise ValueError(f"{path} must be JSON, but is damaged: {error}. Mend it, or move it away.") from error
    if not isinstance(record, dict) or record.pop("format", None) != _FORMAT:
        return None
    return Comparison(**{**record, "results": tuple(map(Result.from_dict, record["results"]))})


def read_comparisons(folder: str | Path) -> tuple[Comparison, ...]:
    """All comparisons in a folder, by the names of their files.

    Raises:
      FileNotFoundError: there is none.
    """
    found = [read_comparison(path) for path in sorted(Path(folder).glob("*.json"))]
    comparisons = tuple(comparison for comparison in found if comparison)
    if not comparisons:
        raise FileNotFoundError(
            f"{folder} must hold results of a comparison, TASK.json, but has none. Make them: optax-unf compare --task "
            f"TASK --out {folder}"
        )
    return comparisons


def _null_where_infinite(x: Any) -> Any:
    if isinstance(x, dict):
        return {name: _null_where_infinite(value) for name, value in x.items()}
    if isinstance(x, list | tuple):
        return [_null_where_infinite(value) for value in x]
    return None if isinstance(x, float) and not math.isfinite(x) else x


def _infinite_where_null(values: Sequence[float | None]) -> tuple[Any, ...]:
    return tuple(math.inf if value is None else value for value in values)
