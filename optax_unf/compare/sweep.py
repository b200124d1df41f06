"""Contenders on all tasks of a suite; what is known already is not run again."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from optax_unf.compare.contenders import BASELINES, Contender
from optax_unf.compare.records import Record, Records
from optax_unf.compare.runs import LANES, adam_seconds, measure, timed
from optax_unf.tasks.task import TaskLike


@dataclasses.dataclass(frozen=True)
class Settings:
    """How contenders run.

    Attributes:
      seeds: fresh runs of each; baselines always have 7.
      timed: whether to measure the time of a step, too, over Adam's in the same process.
      fresh: whether to run candidates again that have a record.
    """

    seeds: int = LANES
    timed: bool = False
    fresh: bool = False


def sweep(
    tasks: Iterable[Callable[[], TaskLike]],
    candidates: Sequence[Contender],
    known: Records,
    *,
    baselines: Sequence[Contender] = BASELINES,
    settings: Settings = Settings(),
    made: Mapping[str, Any] | None = None,
) -> Iterator[Record]:
    """Records of the candidates and of those baselines that have none, task by task, each as soon as it is there.

    A record is taken as known if it is of the same task, seed by seed: the same initial losses and horizon.

    Args:
      tasks: functions that load a task.
      candidates: the contenders in question.
      known: what was measured before.
      baselines: the contenders they are measured against.
      settings: how they run.
      made: versions and commit, for the records.
    """
    for load in tasks:
        task = load()
        unit = adam_seconds(task) if settings.timed else None
        anchor: Record | None = None
        for contender in (*candidates, *baselines):
            is_baseline = contender in baselines
            record = known.get(task.name, contender.name)  # pyright: ignore[reportAttributeAccessIssue]
            stale = record is None or (settings.fresh and not is_baseline) or record.horizon != task.horizon  # pyright: ignore[reportAttributeAccessIssue]
            if record is None or stale or (anchor is not None and not record.pairs_with(anchor)):
                record = measure(contender, task, seeds=LANES if is_baseline else settings.seeds, made=made)
                yield record
            if unit is not None and record.relative_seconds is None:
                record = timed(record, contender, task, unit)
                yield record
            anchor = anchor or record
