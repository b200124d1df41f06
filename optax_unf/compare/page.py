"""A suite's results as a page, as JSON and as pictures."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from optax_unf._files import replaced, write_text
from optax_unf.compare.contenders import ADAM, BASELINES
from optax_unf.compare.records import Record, Records
from optax_unf.compare.speed import grid
from optax_unf.compare.summary import AGAINST, Row, summarize, task_speed_up
from optax_unf.meta.card import made_by
from optax_unf.meta.plot import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 4
_BASELINES = tuple(contender.name for contender in BASELINES)
_ABOUT = """\
Speed-up: steps that a baseline needs for the loss that both reach, over steps taken; geometric mean over tasks and
seeds, with its standard error over seeds. Of several tasks, *behind* counts those slower than Adam at 1e-3; quartiles
and the worst are over tuned Adam with a cosine. A cosine, where one is named, ends at zero with the run; its peak is
the best of at least seven rates on two other seeds, but for Prodigy.
"""


def write_page(folder: str | Path, suite: str, records: Records, made: Mapping[str, Any]) -> str:
    """Writes FOLDER/SUITE.md, SUITE.json, SUITE-profile.png and SUITE-curves.png, and returns the page.

    Args:
      folder: where to.
      suite: the suite's name.
      records: what was measured; contenders and tasks stand in their order.
      made: versions and commit.

    Raises:
      ValueError: no contender has a task with all three baselines.
    """
    folder, tasks = Path(folder), records.tasks()
    rows = [row for name in records.contenders() if (row := summarize(records, name, tasks))]
    if not rows:
        raise ValueError(
            f"A page needs a task on which {', '.join(AGAINST)} ran, but there is none among "
            f"{', '.join(tasks) or 'none'}."
        )
    rows.sort(key=lambda row: -row.over[ADAM.name][0])
    text = page(suite, rows, records, made)
    write_text(folder / f"{suite}.md", text)
    write_text(folder / f"{suite}.json", json.dumps(_as_json(rows, records, made), indent=1) + "\n")
    for name, figure in (("profile", plot_profile(rows, records)), ("curves", plot_curves(records))):
        with replaced(folder / f"{suite}-{name}.png") as temporary:
            figure.savefig(temporary, format="png", dpi=110)
    return text


def page(suite: str, rows: Sequence[Row], records: Records, made: Mapping[str, Any]) -> str:
    """The page in markdown."""
    parts = [
        f"# {suite.capitalize()} tasks\n",
        _ABOUT,
        _summary_table(rows),
        f"![profile]({suite}-profile.png)\n",
        f"## Speed-up over {ADAM.name}, by task\n",
        _task_table(rows, records),
        "## Loss at the end: training, held out\n",
        _loss_table(rows, records),
        f"![curves]({suite}-curves.png)\n",
        made_by(made),
    ]
    return "\n".join(parts) + "\n"


def _summary_table(rows: Sequence[Row]) -> str:
    columns: dict[str, Callable[[Row], str]] = {"optimizer": lambda row: row.contender}
    for name in AGAINST:
        columns[f"over {name}"] = lambda row, name=name: "{:.2f} ± {:.2f}".format(*row.over[name])
    if any(row.tasks > 1 for row in rows):
        columns["tasks"] = lambda row: str(row.tasks)
        columns["quartiles"] = lambda row: ", ".join(f"{x:.2f}" for x in row.quartiles)
        columns["worst"] = lambda row: f"{row.worst[0]:.2f} ({row.worst[1]})"
        columns["behind"] = lambda row: str(row.behind_untuned)
    columns["diverged"] = lambda row: f"{row.diverged} of {row.runs}"
    if any(row.over_in_time is not None for row in rows):
        columns["in time"] = lambda row: "-" if row.over_in_time is None else f"{row.over_in_time:.2f}"
    return _table(tuple(columns), [[write(row) for write in columns.values()] for row in rows])


def _task_table(rows: Sequence[Row], records: Records) -> str:
    names = [row.contender for row in rows if row.contender != ADAM.name]
    body = []
    for task in records.tasks():
        ratios = [task_speed_up(records, task, name, ADAM.name) for name in names]
        body.append((task, *("-" if ratio is None else f"{ratio:.2f}" for ratio in ratios)))
    return _table(("task", *names), body)


def _loss_table(rows: Sequence[Row], records: Records) -> str:
    names = [row.contender for row in rows]
    body = []
    for task in records.tasks():
        found = [records.get(task, name) for name in names]
        body.append((task, *("-" if record is None else _losses(record) for record in found)))
    return _table(("task", *names), body)


def _losses(record: Record) -> str:
    return f"{record.final.mean():.3g}, {record.held_out.mean():.3g}"


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _as_json(rows: Sequence[Row], records: Records, made: Mapping[str, Any]) -> dict[str, Any]:
    tasks: dict[str, Any] = {}
    for record in records:
        over = {name: task_speed_up(records, record.task, record.contender, name) for name in AGAINST}
        losses = {name: [_number(x) for x in getattr(record, name)] for name in ("final", "held_out")}
        about = {"horizon": record.horizon, "setting": record.setting, "over": over, **losses}
        tasks.setdefault(record.task, {})[record.contender] = about
    return {"made": dict(made), "rows": [dataclasses.asdict(row) for row in rows], "tasks": tasks}


def _number(x: float) -> float | None:
    return float(f"{x:.6g}") if math.isfinite(x) else None


def plot_profile(rows: Sequence[Row], records: Records) -> "Figure":
    """The share of tasks on which a contender is at least so many times as fast as tuned Adam with a cosine."""
    figure = new_figure((8, 7))
    axes = figure.subplots()
    for number, row in enumerate(rows):
        found = [task_speed_up(records, task, row.contender, ADAM.name) for task in records.tasks()]
        ratios = np.sort([ratio for ratio in found if ratio is not None])[::-1]
        share = np.arange(1, len(ratios) + 1) / len(ratios)
        label = f"{row.contender} ({row.over[ADAM.name][0]:.2f})"
        axes.step(ratios, share, _style(number), color=f"C{number % 10}", where="pre", label=label)
    axes.axvline(1, color="0.8", zorder=0)
    axes.set(xscale="log", xlabel=f"times as fast as {ADAM.name}", ylabel="share of tasks", ylim=(0, 1.02))
    ticks = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20)
    axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    return figure


def plot_curves(records: Records) -> "Figure":
    """Smoothed training curves, the mean over seeds, a panel for each task."""
    tasks = records.tasks()
    columns = min(len(tasks), _COLUMNS)
    lines = math.ceil(len(tasks) / columns)
    figure = new_figure((max(4 * columns, 6), max(3 * lines, 5)))
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, task in zip(panels, tasks, strict=False):
        _plot_task(axes, records, task)
    for axes in panels[len(tasks) :]:
        axes.axis("off")
    handles = {}
    for axes in panels:
        handles |= {label: line for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=max(columns, 2), fontsize="small")
    return figure


def _style(number: int) -> str:
    """A line of its own where the ten colours come round."""
    return ("-", "--", ":")[number // 10 % 3]


def _plot_task(axes: "Axes", records: Records, task: str) -> None:
    names = records.contenders()
    for number, name in enumerate(names):
        if (record := records.get(task, name)) is None:
            continue
        width = 1.0 if name in _BASELINES else 2.0
        mean = record.curves.mean(0)
        axes.plot(grid(record.horizon), mean, _style(number), color=f"C{number % 10}", label=name, linewidth=width)
    curves = [r.curves.mean(0) for name in names if (r := records.get(task, name)) is not None]
    low, high = (np.nanquantile(np.concatenate(curves), q) for q in (0.0, 0.9))
    if low > 0:
        axes.set_yscale("log")
    if math.isfinite(low) and math.isfinite(high):
        axes.set_ylim(low * (0.95 if low > 0 else 1.0), high * 1.05)
    axes.set_title(task, fontsize="small")
