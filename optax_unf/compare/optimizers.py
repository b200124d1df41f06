"""The comparison: learned optimizers, and optimizers with a tuned rate, on the same fresh inner runs."""

import dataclasses
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from optax_unf.compare.baselines import ADAM, BASELINES, TUNING_SEEDS, WEIGHT_DECAY, Baseline, best_rate, tune
from optax_unf.compare.results import Curve, Result, mean_and_error
from optax_unf.meta.card import digest
from optax_unf.meta.evaluate import FINAL_STEPS
from optax_unf.meta.fresh import fresh_keys, fresh_runs
from optax_unf.meta.inner import Theta, Training, learned_training, unroll
from optax_unf.optimizer.meta_weights import MetaWeights, check_fits
from optax_unf.tasks.task import TaskLike, as_task, check_held_out, task_horizon, task_spec

_CURVE_POINTS = 200
_TIMED_STEPS, _TIMED_REPEATS = 100, 7


def compare_optimizers(
    task: TaskLike,
    learned: Mapping[str, MetaWeights],
    *,
    steps: int | None = None,
    seeds: int = 5,
    baselines: Iterable[Baseline] = BASELINES,
    known: Iterable[Result] = (),
) -> Iterator[Result]:
    """Compares optimizers on a task.

    Each baseline has the best rate of its grid, by the mean final training loss over 3 tuning seeds; where that is at
    an end of the grid, the grid grows until it is not. All optimizers then run on the same fresh seeds, which are
    others. Adam with a constant rate comes first, since the others are measured against its final loss.

    Args:
      task: the task, which needs a method `held_out()` for the validation loss.
      learned: learned optimizers by name.
      steps: inner steps of each run; by default the task's horizon.
      seeds: fresh inner runs of each optimizer.
      baselines: the others, in the order wanted; Adam is always among them.
      known: results that need not be found again, but for their times; those with other settings are.

    Yields:
      A `Result` for each optimizer as soon as it is known.

    Raises:
      ValueError: weights do not fit the task, there are less than two seeds, the task has no held-out data, or an
        optimizer diverges at every rate.

    Example:
      >>> from optax_unf import load_weights, tasks
      >>> learned = {"SGDM, meta-trained": load_weights("mlp-fashion-mnist-sgdm")}
      >>> results = compare_optimizers(tasks.get("mlp-digits"), learned, steps=20, seeds=2, baselines=())
      >>> [result.name for result in results]
      ['Adam', 'SGDM, meta-trained']
    """
    if seeds < 2:
        raise ValueError(f"A comparison needs at least two seeds for its standard errors, but seeds is {seeds}.")
    check_held_out(task)
    for weights in learned.values():
        check_fits(weights.spec, task_spec(task, weights.architecture.head))
    steps = task_horizon(task) if steps is None else steps
    others = [baseline for baseline in baselines if baseline.name != ADAM.name]
    contenders = [_Tuned(baseline) for baseline in (ADAM, *others)]
    contenders += [_MetaTrained(name, weights) for name, weights in learned.items()]
    common = {"task": as_task(task).name, "steps": steps, "seeds": seeds}
    known_results = {result.name: result for result in known}
    adam_loss = None
    for contender in contenders:
        settings = common | contender.settings
        result = known_results.get(contender.name)
        if result is None or result.settings != settings:
            result = _measured(contender, settings, task, steps, seeds, adam_loss)
        else:
            # Times of different processes do not compare.
            training, theta = contender.trained(task, steps, result.rate)
            result = dataclasses.replace(result, seconds_per_step=_seconds_per_step(training, theta, steps))
        if adam_loss is None:
            adam_loss = mean_and_error(result.training_loss)[0]
        yield result


def steps_to_reach(losses: Float[np.ndarray, "runs steps"], target: float) -> int | None:
    """Inner steps until the mean over runs, and over the last 50 steps, is at most `target`; `None` if never.

    Example:
      >>> steps_to_reach(np.linspace(1.0, 0.0, 101)[None], target=0.5)
      76
    """
    if not np.isfinite(losses[:, -1]).all():
        return None
    smooth = _smoothed(losses).mean(0)
    # Adam's own curve must reach its own loss, up to rounding.
    reached = np.flatnonzero(smooth <= target * (1 + 1e-9))
    return int(reached[0]) + losses.shape[1] - len(smooth) + 1 if len(reached) else None


@dataclasses.dataclass(frozen=True)
class _Tuned:
    baseline: Baseline

    @property
    def name(self) -> str:
        return self.baseline.name

    @property
    def settings(self) -> dict[str, Any]:
        decay = {"weight_decay": WEIGHT_DECAY} if self.name.startswith("AdamW") else {}
        return {"grid": list(self.baseline.rates), "tuning_seeds": TUNING_SEEDS, **decay}

    def tuning(self, task: TaskLike, steps: int) -> dict[str, Any]:
        losses = tune(self.baseline, task, steps)
        return {"learned": False, "rate": best_rate(losses), "tuning": tuple(losses.items())}

    def trained(self, task: TaskLike, steps: int, rate: float | None) -> tuple[Training, Theta]:
        return self.baseline.training(task, steps), jnp.float32(rate)


@dataclasses.dataclass(frozen=True)
class _MetaTrained:
    name: str
    weights: MetaWeights

    @property
    def settings(self) -> dict[str, Any]:
        return {"optimizer": dataclasses.asdict(self.weights.architecture), "weights": digest(self.weights)}

    def tuning(self, task: TaskLike, steps: int) -> dict[str, Any]:
        del task, steps
        return {"learned": True, "rate": None}

    def trained(self, task: TaskLike, steps: int, rate: float | None) -> tuple[Training, Theta]:
        del rate
        return learned_training(self.weights.architecture, task, steps), self.weights.theta


def _measured(
    contender: _Tuned | _MetaTrained,
    settings: dict[str, Any],
    task: TaskLike,
    steps: int,
    seeds: int,
    adam_loss: float | None,
) -> Result:
    """The result of a contender; without `adam_loss` it is Adam itself."""
    about = contender.tuning(task, steps)
    training, theta = contender.trained(task, steps, about["rate"])
    runs = fresh_runs(training, theta, fresh_keys(seeds), steps)
    losses = np.asarray(runs.losses, np.float64)
    final = _infinite_where_nan(losses[:, -FINAL_STEPS:].mean(1))
    return Result(
        name=contender.name,
        settings=settings,
        training_loss=final,
        validation_loss=_infinite_where_nan(np.asarray(runs.validation, np.float64)),
        seconds_per_step=_seconds_per_step(training, theta, steps),
        steps_to_adam=steps_to_reach(losses, mean_and_error(final)[0] if adam_loss is None else adam_loss),
        curve=_curve(losses),
        **about,
    )


def _curve(losses: Float[np.ndarray, "runs steps"]) -> Curve:
    smooth = _smoothed(losses)
    offset = losses.shape[1] - smooth.shape[1] + 1
    columns = np.unique(np.linspace(0, smooth.shape[1] - 1, _CURVE_POINTS).astype(int))
    pairs = [mean_and_error(smooth[:, column]) for column in columns]
    mean, error = (tuple(float(f"{x:.6g}") for x in values) for values in zip(*pairs, strict=True))
    return Curve(tuple(int(column) + offset for column in columns), mean, error)


def _smoothed(losses: Float[np.ndarray, "runs steps"]) -> Float[np.ndarray, "runs windows"]:
    """Means over the last 50 steps, from the first step that has so many before it."""
    window = min(FINAL_STEPS, losses.shape[1])
    return np.lib.stride_tricks.sliding_window_view(losses, window, axis=1).mean(2)


def _seconds_per_step(training: Training, theta: Theta, steps: int) -> float:
    """The median time of a step of one run on one device, many steps to a call."""
    length = min(_TIMED_STEPS, steps)
    run = jax.jit(training.start)(theta, jax.random.key(0))
    call = jax.jit(lambda theta, run: unroll(training, theta, run, length))
    jax.block_until_ready(call(theta, run))
    times = []
    for _ in range(_TIMED_REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(call(theta, run))
        times.append(time.perf_counter() - start)
    return float(np.median(times)) / length


def _infinite_where_nan(values: Float[np.ndarray, " runs"]) -> tuple[float, ...]:
    return tuple(float(x) if math.isfinite(x) else math.inf for x in values)
