"""Settings of a meta-training run as the command line takes them."""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from optax_unf.meta import NRES, PES, Backprop, FullES, MetaTrainConfig, Stage, TruncatedES
from optax_unf.meta.recipes import small_budget
from optax_unf.optimizer.architecture import Head
from optax_unf.tasks.task import as_task, task_horizon

_ESTIMATORS = {"pes": PES, "truncated-es": TruncatedES, "nres": NRES, "full-es": FullES, "backprop": Backprop}
_OF_ESTIMATORS = {"pairs", "runs", "truncation", "skip", "sigma", "objective"}


@dataclasses.dataclass(frozen=True)
class StageOptions:
    """One stage of meta-training.

    Attributes:
      steps: Outer steps.
      estimator: Gradient estimator.
      pairs: Antithetic pairs of inner runs, of the evolution strategies.
      runs: Inner runs of backprop.
      truncation: Inner steps per gradient estimate; full-es has whole runs instead.
      skip: Inner steps that a run of backprop takes before its first estimate.
      sigma: Standard deviation of the perturbation, of the evolution strategies.
      objective: Of the evolution strategies: the loss at the end of the inner run, or its mean over the run.
      learning_rate: Of the outer Adam, at its peak.
      schedule: Of the outer learning rate.
      warmup: Outer steps over which the rate rises from zero.
      scalar_rate: Peak for log alpha, logit gamma_0 and log beta; by default beta itself is trained, and all at the
        one rate.
      trained: All meta-weights, or the scalars alone, with the network as it is.
    """

    steps: int = 50_000
    estimator: Literal["pes", "truncated-es", "nres", "full-es", "backprop"] = "pes"
    pairs: int = 16
    runs: int = 16
    truncation: int = 50
    skip: int = 0
    sigma: float = 0.01
    objective: Literal["final", "mean"] = "final"
    learning_rate: float = 1e-4
    schedule: Literal["constant", "cosine"] = "constant"
    warmup: int = 0
    scalar_rate: float | None = None
    trained: Literal["all", "scalars"] = "all"

    def stage(self) -> Stage:
        """The stage that the options describe."""
        estimator = _ESTIMATORS[self.estimator]
        known = {field.name for field in dataclasses.fields(estimator)} & _OF_ESTIMATORS
        if ignored := (set(_given(self)) & _OF_ESTIMATORS) - known:
            raise ValueError(
                f"The options of {self.estimator} are {_flags(sorted(known))}, but {_flags(sorted(ignored))} is given."
            )
        shared = [field.name for field in dataclasses.fields(Stage) if field.name != "estimator"]
        return Stage(
            estimator(**{name: getattr(self, name) for name in known}),
            **{name: getattr(self, name) for name in shared},
        )


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """What holds for all stages of a meta-training run.

    Attributes:
      horizon: Inner steps of one whole inner run; by default the task's: 2,000, of the Transformer 5,000.
      clip_norm: Outer gradients are scaled down to this norm.
      evaluate_every: Outer steps between evaluations on fresh inner runs; the best meta-weights are kept.
      evaluate_runs: Inner runs of an evaluation.
      checkpoint_every: Outer steps between checkpoints.
    """

    horizon: int | None = None
    clip_norm: float = 1.0
    evaluate_every: int = 50
    evaluate_runs: int = 8
    checkpoint_every: int = 50


def run_config(
    tasks: Sequence[Any],
    head: Head,
    stage: StageOptions,
    run: RunOptions,
    *,
    recipe: str | None = None,
    file: Path | None = None,
) -> MetaTrainConfig:
    """The settings of a meta-training run.

    Args:
      tasks: the tasks.
      head: of the learned optimizer.
      stage: the one stage, unless there is a recipe or a file.
      run: what holds for all stages, unless there is a file.
      recipe: `"small"` for `small_budget` of the first task.
      file: JSON of a `MetaTrainConfig`.

    Raises:
      ValueError: options contradict one another, or a setting cannot work.

    Example:
      >>> from optax_unf import tasks
      >>> config = run_config([tasks.get("mlp-digits")], "unf", StageOptions(steps=5), RunOptions())
      >>> config.horizon, config.stages[0].steps
      (2000, 5)
    """
    if file is not None:
        if given := [*(["recipe"] if recipe else []), *_given(stage), *_given(run)]:
            raise ValueError(f"--config {file} holds all settings of the run, but {_flags(given)} is given besides.")
        return MetaTrainConfig.from_dict(_read(file))
    if recipe and (given := _given(stage)):
        raise ValueError(f"--recipe {recipe} holds the settings of all stages, but {_flags(given)} is given besides.")
    horizon = _horizon(tasks) if run.horizon is None else run.horizon
    stages = small_budget(as_task(tasks[0]).name, head) if recipe else (stage.stage(),)
    return MetaTrainConfig(stages, **(dataclasses.asdict(run) | {"horizon": horizon}))


def _read(file: Path) -> dict[str, Any]:
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"--config {file} must be JSON, but is not: {error}.") from error
    if not isinstance(settings, dict):
        raise ValueError(f"--config {file} must hold an object of settings, but holds {settings!r}.")
    return settings


def _horizon(tasks: Sequence[Any]) -> int:
    horizons = {as_task(task).name: task_horizon(task) for task in tasks}
    if len(set(horizons.values())) > 1:
        raise ValueError(f"Tasks that are meta-trained on together need one --horizon, but theirs are {horizons}.")
    return next(iter(horizons.values()))


def _given(options: StageOptions | RunOptions) -> list[str]:
    """Names of the options that are not what they are by default."""
    return [f.name for f in dataclasses.fields(options) if getattr(options, f.name) != f.default]


def _flags(names: Iterable[str]) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)
