"""Runs of a contender on a task: all settings and seeds in one compiled program."""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jaxtyping import Array, Float, PyTree

from optax_unf.compare.contenders import ADAM, Contender
from optax_unf.compare.records import Record
from optax_unf.compare.speed import final_loss, smoothed
from optax_unf.meta.fresh import fresh_keys, numbered_keys
from optax_unf.meta.inner import InnerRun, Training, unroll
from optax_unf.meta.particles import map_particles
from optax_unf.tasks.task import TaskLike, as_task, check_held_out, task_horizon

TUNING_SEEDS = 2
# Settings of a grid, fresh seeds, and runs of one call of a compiled program.
LANES = 7
_MOST_SETTINGS = 25
_TIMED_STEPS, _TIMED_REPEATS = 30, 5

# Losses of all steps `[runs, steps]` and held-out losses `[runs]`, of runs with these settings and keys.
Runner = Callable[[Sequence[float], Array], tuple[np.ndarray, np.ndarray]]


def measure(
    contender: Contender, task: TaskLike, *, seeds: int = LANES, made: Mapping[str, Any] | None = None
) -> Record:
    """Runs a contender on fresh seeds, after its setting was tuned on others if it has a grid.

    Args:
      contender: the optimizer.
      task: the task, with attributes `name` and `horizon` and a method `held_out()`.
      seeds: fresh runs; run `i` has the same initial parameters and batches for all contenders.
      made: versions and commit, for the record.

    Raises:
      ValueError: no setting is best inside of a grid, after many extensions.
    """
    runner = _runner(contender, task, LANES if contender.grid else seeds)
    tuning = _tune(contender, runner)
    setting = min(tuning, key=lambda s: tuning[s]) if tuning else contender.setting
    losses, held_out = runner([setting] * seeds, fresh_keys(seeds))
    return Record(
        task=as_task(task).name,
        contender=contender.name,
        horizon=losses.shape[1],
        setting=setting,
        tuning=tuple(sorted(tuning.items())),
        start=losses[:, 0],
        curves=smoothed(losses),
        final=final_loss(losses),
        held_out=np.where(np.isfinite(held_out), held_out, np.inf),
        made=dict(made or {}),
    )


def timed(record: Record, contender: Contender, task: TaskLike, adam_seconds: float) -> Record:
    """The record with the time of an inner step over Adam's."""
    seconds = seconds_per_step(contender, task, record.setting)
    return dataclasses.replace(record, relative_seconds=seconds / adam_seconds)


def seconds_per_step(contender: Contender, task: TaskLike, setting: float) -> float:
    """The median time of an inner step of one run, many to a call."""
    training = _training(contender, task)
    length = min(_TIMED_STEPS, task_horizon(task))
    run = jax.jit(training.start)(jnp.float32(setting), jax.random.key(0))
    call = jax.jit(lambda setting, run: unroll(training, setting, run, length))
    # Compiles, and leaves the first steps behind, which may cost more than the others.
    run, _ = jax.block_until_ready(call(jnp.float32(setting), run))
    times = []
    for _ in range(_TIMED_REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(call(jnp.float32(setting), run))
        times.append(time.perf_counter() - start)
    return float(np.median(times)) / length


def adam_seconds(task: TaskLike) -> float:
    """The time of an inner step with Adam, the unit of `Record.relative_seconds`."""
    return seconds_per_step(ADAM, task, 1e-3)


def _training(contender: Contender, task: TaskLike) -> Training:
    horizon = task_horizon(task)
    return Training(task, lambda setting: contender.make(setting, horizon, task))


def _runner(contender: Contender, task: TaskLike, lanes: int) -> Runner:
    """Runs, so many to a call of one compiled program."""
    training = _training(contender, task)
    horizon = task_horizon(task)
    start, held_out_loss = _ends(task)

    def run(lane: tuple[Float[Array, ""], InnerRun]) -> tuple[PyTree, Array]:
        setting, fresh = lane
        fresh = fresh._replace(optimizer=training.optimizer(setting).init(fresh.params))
        end, losses = unroll(training, setting, fresh, horizon)
        return contender.trained(end.optimizer, end.params), losses

    program = None

    def runner(settings: Sequence[float], keys: Array) -> tuple[np.ndarray, np.ndarray]:
        nonlocal program
        found = []
        for first in range(0, len(settings), lanes):
            # Always as many runs, so that it is compiled once.
            chosen = np.minimum(np.arange(first, first + lanes), len(settings) - 1)
            some = jnp.asarray(settings, jnp.float32)[chosen], start(keys[chosen])
            program = program or _without_constants(lambda lane: map_particles(run, lane), some)
            params, losses = program(some)
            ends = losses, held_out_loss(params)
            found.append([np.asarray(x, np.float64)[: len(settings) - first] for x in ends])
        losses, held_out = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return losses, held_out

    return runner


@functools.lru_cache(maxsize=2)
def _ends(task: TaskLike) -> tuple[Callable[[Array], InnerRun], Callable[[PyTree], Array]]:
    """Fresh runs without an optimizer from their keys, and the held-out losses of parameters: alike for all contenders.

    Both are computed once and hardly optimized, since random numbers take XLA long to compile.
    """
    training = Training(task, lambda _: optax.identity())
    check_held_out(task)

    def loss(params: PyTree) -> Float[Array, ""]:
        return task.loss(params, as_task(task).held_out())

    options = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
    starts = jax.jit(jax.vmap(lambda key: training.start(0.0, key)), compiler_options=options)
    return starts, jax.jit(lambda params: jax.lax.map(loss, params), compiler_options=options)


def _without_constants(function: Callable[[Any], Any], example: Any) -> Callable[[Any], Any]:
    """The compiled function, its constants being arguments: a data set within a program takes long to compile."""
    traced, shape = jax.make_jaxpr(function, return_shape=True)(example)
    tree = jax.tree.structure(shape)
    program = jax.jit(lambda constants, leaves: jaxpr_as_fun(ClosedJaxpr(traced.jaxpr, constants))(*leaves))
    return lambda arg: jax.tree.unflatten(tree, program(traced.consts, jax.tree.leaves(arg)))


def _tune(contender: Contender, runner: Runner) -> dict[float, float]:
    """The mean final loss over the tuning seeds at each setting; the grid grows while its best is at an edge."""
    keys = numbered_keys(2024, TUNING_SEEDS)
    found: dict[float, float] = {}
    new = list(contender.grid)
    while new:
        settings = [setting for setting in new for _ in range(TUNING_SEEDS)]
        losses, _ = runner(settings, jnp.tile(keys, len(new)))
        found |= dict(zip(new, final_loss(losses).reshape(len(new), -1).mean(1).tolist(), strict=True))
        first, *_, last = sorted(found)
        best = min(sorted(found), key=lambda setting: found[setting])
        # As many as one call has room for.
        more = 2.0 ** np.arange(1, 1 + LANES // TUNING_SEEDS)
        new = (first / more).tolist() if best == first else (last * more).tolist() if best == last else []
        if new and len(found) >= _MOST_SETTINGS:
            raise ValueError(
                f"The best setting of {contender.name} must lie inside a grid, but of {len(found)} from {first:.2g} to "
                f"{last:.2g} the best is {best:.2g}, with a final loss of {found[best]:.4g}."
            )
    return found
