"""The command `optax-unf suite`."""

import functools
import os
from pathlib import Path
from typing import Literal

import jax

from optax_unf import tasks
from optax_unf.compare.contenders import BASELINES, Contender, candidate
from optax_unf.compare.page import write_page
from optax_unf.compare.records import Records, bundled, merged
from optax_unf.compare.runs import LANES
from optax_unf.compare.suite import QUICK, SUITES, get
from optax_unf.compare.summary import summarize
from optax_unf.compare.sweep import Settings, sweep
from optax_unf.meta.card import provenance, this_command
from optax_unf.tasks.task import Task, as_task, check_held_out, task_horizon


def run_suite(
    candidates: tuple[str, ...] = (),
    /,
    *,
    suite: Literal["unseen", "probe", "stress"] = "unseen",
    spec: Literal["none", "inferred"] = "none",
    factors: tuple[float, ...] = (1.0,),
    tune: float | None = None,
    task: tuple[str, ...] = (),
    quick: bool = False,
    seeds: int = LANES,
    timed: bool = False,
    fresh: bool = False,
    out: Path = Path("runs/suite"),
) -> None:
    """Measures optimizers on networks that no weights have seen, against tuned Adam, Muon and others.

    Writes OUT/records.npz after each optimizer on each task, and at the end OUT/SUITE.md, SUITE.json and two pictures
    (own.md and so on, where all tasks are your own).
    Called again, it goes on: what OUT/records.npz has is not run again, nor are the baselines that the package brings.
    The suites read data from the folder that OPTAX_UNF_DATA names.

    Args:
      candidates: module:attribute or file.py:attribute, a function (total_steps) -> GradientTransformation, which may
        also take an argument factor; or meta-weights by name or path. None for the baselines alone.
      suite: unseen gives results; probe is there to choose by; stress has networks and runs far from the usual.
      spec: None, or inferred from each task's loss; functions take it as their argument spec.
      factors: Factors to run the candidates with.
      tune: The middle of a grid of factors, to take the best of, in place of --factors.
      task: Tasks of the suite by name, or of your own as module:attribute or file.py:attribute; by default all.
      quick: Only 8 cheap tasks, with 3 seeds.
      seeds: Fresh runs of each candidate, at most 7.
      timed: Measure the time of a step, too; let the machine do nothing else meanwhile.
      fresh: Run the candidates again.
      out: Folder of the results.
    """
    if not 1 <= seeds <= LANES:
        raise ValueError(f"--seeds must be 1 to {LANES}, as many as the baselines have, but is {seeds}.")
    keep_compiled()
    chosen = _candidates(candidates, spec, factors, tune)
    names = task or (QUICK[suite] if quick else tuple(SUITES[suite]))
    seen: set[str] = set()
    loaders = [functools.partial(_load, suite, name, seen) for name in names]
    own = Records.read(out / "records.npz")
    known = bundled()
    made = provenance(this_command())
    settings = Settings(seeds=min(seeds, 3) if quick else seeds, timed=timed, fresh=fresh)
    for record in sweep(loaders, chosen, merged(known, own), settings=settings, made=made):
        own.add(record)
        own.write(out / "records.npz")
        print(f"{record.task}: {record.contender}, final loss {record.final.mean():.4g}", flush=True)
    shown = Records(record for record in merged(known, own) if record.task in seen)
    title = "own" if all(":" in name for name in names) else suite
    write_page(out, title, shown, made)
    for contender in (*chosen, *BASELINES):
        if row := summarize(shown, contender.name, shown.tasks()):
            over = ", ".join(f"{mean:.2f} ± {error:.2f} over {name}" for name, (mean, error) in row.over.items())
            print(f"{row.contender}: {over}")
    print(f"Wrote {out / title}.md")


def _candidates(
    sources: tuple[str, ...], spec: Literal["none", "inferred"], factors: tuple[float, ...], tune: float | None
) -> list[Contender]:
    if tune is not None:
        return [candidate(source, spec=spec, middle=tune) for source in sources]
    return [candidate(source, spec=spec, setting=factor) for source in sources for factor in factors]


def _load(suite: str, name: str, seen: set[str]) -> Task:
    """A task of the suite or of the user's, whose name joins those that were seen."""
    task = as_task(tasks.get(name) if ":" in name else get(suite, name))
    check_held_out(task)
    task_horizon(task)
    seen.add(task.name)
    return task


def keep_compiled() -> None:
    """Keeps compiled programs on disk, from one call to the next."""
    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        jax.config.update("jax_compilation_cache_dir", str(cache / "optax_unf" / "compiled"))
