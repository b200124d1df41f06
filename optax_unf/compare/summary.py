"""Speed-ups of contenders over baselines, and what they come to over all tasks."""

import dataclasses
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float

from optax_unf.compare.contenders import ADAM, MUON, UNTUNED_ADAM
from optax_unf.compare.records import Record, Records
from optax_unf.compare.speed import CAP, geometric_mean, speed_up

# A table compares with these.
AGAINST = (UNTUNED_ADAM.name, ADAM.name, MUON.name)


@dataclasses.dataclass(frozen=True)
class Row:
    """A contender over all tasks that it and the baselines ran on.

    Attributes:
      contender: its name.
      tasks: how many tasks.
      over: by baseline, the geometric mean of the speed-ups and its standard error over seeds.
      quartiles: of the tasks' speed-ups over tuned Adam with a cosine: 25, 50 and 75 percent.
      worst: the least of them, and its task.
      behind_untuned: number of tasks on which it is slower than Adam at 1e-3.
      diverged: number of runs whose loss was not finite.
      runs: number of runs.
      over_in_time: the geometric mean over tuned Adam with a cosine in wall time, where times were measured.
    """

    contender: str
    tasks: int
    over: dict[str, tuple[float, float]]
    quartiles: tuple[float, float, float]
    worst: tuple[float, str]
    behind_untuned: int
    diverged: int
    runs: int
    over_in_time: float | None


def speed_ups(record: Record, baseline: Record) -> Float[np.ndarray, " seeds"]:
    """The speed-up of each run over the baseline's run of the same seed.

    Raises:
      ValueError: the records are not of the same task.
    """
    if not record.pairs_with(baseline):
        raise ValueError(
            f"Records of {record.contender} and {baseline.contender} on {record.task} must be of the same runs, but "
            f"begin with losses {record.start} and {baseline.start}: the task or its data has changed. Run it again."
        )
    pairs = zip(record.curves, baseline.curves, strict=False)  # the first seeds of both
    return np.array([speed_up(curve, reference, record.horizon) for curve, reference in pairs])


def summarize(records: Records, contender: str, tasks: Iterable[str]) -> Row | None:
    """The row of a contender, over those tasks that it and the three baselines ran on; `None` if there are none."""
    found = {}
    for task in tasks:
        mine, *theirs = (records.get(task, name) for name in (contender, *AGAINST))
        if mine is not None and all(theirs):
            found[task] = mine
    if not found:
        return None
    ratios = {name: _ratios(records, found, name) for name in AGAINST}
    by_task = np.exp(np.log(ratios[ADAM.name]).mean(0))
    untuned = np.exp(np.log(ratios[UNTUNED_ADAM.name]).mean(0))
    least = int(by_task.argmin())
    low, median, high = np.quantile(by_task, [0.25, 0.5, 0.75])
    return Row(
        contender=contender,
        tasks=len(found),
        over={name: geometric_mean(x) for name, x in ratios.items()},
        quartiles=(float(low), float(median), float(high)),
        worst=(float(by_task[least]), list(found)[least]),
        behind_untuned=int((untuned < 1).sum()),
        diverged=sum(int((~np.isfinite(record.final)).sum()) for record in found.values()),
        runs=sum(record.seeds for record in found.values()),
        over_in_time=_over_in_time(records, found, by_task),
    )


def task_speed_up(records: Records, task: str, contender: str, baseline: str) -> float | None:
    """The geometric mean over seeds on one task."""
    mine, theirs = records.get(task, contender), records.get(task, baseline)
    if mine is None or theirs is None:
        return None
    return float(np.exp(np.log(speed_ups(mine, theirs)).mean()))


def _ratios(records: Records, found: dict[str, Record], baseline: str) -> Float[np.ndarray, "seeds tasks"]:
    columns = []
    for task, record in found.items():
        reference = records.get(task, baseline)
        assert reference is not None
        columns.append(speed_ups(record, reference))
    seeds = min(map(len, columns))
    return np.stack([column[:seeds] for column in columns], 1)


def _over_in_time(records: Records, found: dict[str, Record], by_task: Float[np.ndarray, " tasks"]) -> float | None:
    seconds = []
    for task, record in found.items():
        reference = records.get(task, ADAM.name)
        if record.relative_seconds is None or reference is None or reference.relative_seconds is None:
            return None
        seconds.append(record.relative_seconds / reference.relative_seconds)
    ratios = np.clip(by_task / np.array(seconds), 1 / CAP, CAP)
    return float(np.exp(np.log(ratios).mean()))
