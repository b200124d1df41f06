"""Meta-training: the outer loop."""

import contextlib
import dataclasses
import functools
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from optax_unf.meta.card import digest, make_card, provenance, this_command
from optax_unf.meta.checkpoint import Checkpoints
from optax_unf.meta.checks import check_spaces, check_start, named_tasks
from optax_unf.meta.config import MetaTrainConfig
from optax_unf.meta.distributed import failures_explained, is_first, told_to_stop
from optax_unf.meta.evaluate import evaluation, training_losses
from optax_unf.meta.inner import Theta, learned_training
from optax_unf.meta.interrupt import Interruption
from optax_unf.meta.metrics import Reporter
from optax_unf.meta.outer import TrainState, make_outer_step, start_stage, state_shardings
from optax_unf.meta.particles import placed
from optax_unf.meta.position import Position, resumed, settings_of
from optax_unf.meta.run_folder import claimed, write_results, write_settings
from optax_unf.optimizer.architecture import Architecture, InitialScalars
from optax_unf.optimizer.meta_weights import MetaWeights, init_weights
from optax_unf.optimizer.theta import Layer
from optax_unf.tasks.task import TaskLike, task_spec


@dataclasses.dataclass(frozen=True)
class MetaTrainResult:
    """What a meta-training run leaves behind.

    Attributes:
      weights: the best meta-weights, by the final loss on fresh inner runs.
      last: the meta-weights after the last outer step.
      curve: one record per evaluation: `step` (outer), `final_loss` (mean over fresh inner runs and tasks),
        `loss_at_100`, `loss_at_500`, `loss_at_1000`; of several tasks also the `final_loss/TASK` of each.
      seconds: wall time of the outer steps, evaluations and compilations.
    """

    weights: MetaWeights
    last: MetaWeights
    curve: list[dict[str, float]]
    seconds: float


def meta_train(
    architecture: Architecture,
    task: TaskLike | Sequence[TaskLike],
    config: MetaTrainConfig,
    key: Array,
    *,
    weights: MetaWeights | None = None,
    scalars: InitialScalars | None = None,
    out: str | Path | None = None,
    card: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> MetaTrainResult:
    """Meta-trains a learned optimizer on a task, or on several at once.

    Each outer step is one jitted call: a truncation of all particles under one `lax.scan`, their gradient estimate
    (the mean of the tasks' estimates) and Adam. The same key gives the same result.

    With a folder `out`, the run writes there
    - `config.json`: the settings;
    - `checkpoints/`, on a schedule, at the end of each stage, and when SIGTERM or SIGINT (Ctrl-C) asks it to stop,
      after the outer step under way; called again, it continues from the newest exactly as if it had not stopped;
    - `weights.safetensors`, at the end: the best meta-weights, with their card, and `curves.png` where matplotlib is;
    - `metrics.jsonl`: a record for each outer step (`step`, `stage`, `loss`, `grad_norm`, `learning_rate`, `diverged`,
      `seconds`, `inner_steps_per_second`) and for each evaluation (`step`, `stage`, `final_loss`, ..., `seconds`). The
      first step of a stage includes its compilation;
    - `tensorboard/`: the same numbers, if tensorboardX is installed.

    Args:
      architecture: of the learned optimizer.
      task: the inner task, or several.
      config: settings.
      key: a PRNG key.
      weights: where to start; by default fresh meta-weights.
      scalars: initial values of the scalars of fresh meta-weights.
      out: the run's folder.
      card: what the card of the weights there says besides, such as `{"start": name}`.
      progress: show a progress bar (if tqdm is installed).

    Raises:
      ValueError: `out` holds a checkpoint of a run with other settings or one that is damaged, or another process works
        in it; there is no task; tasks
        have different weight spaces and the architecture fits one only; `weights` are of another architecture or
        another weight space, or are given beside `scalars`.
      TypeError: a task lacks a method.
      ModuleNotFoundError: `out` is given and orbax is not installed.
      KeyboardInterrupt: SIGINT came.
      SystemExit: SIGTERM came (code 143).

    Example:
      >>> import jax
      >>> from optax_unf import Architecture, tasks
      >>> from optax_unf.meta import PES, MetaTrainConfig, Stage, meta_train
      >>> stage = Stage(PES(pairs=1, truncation=2), steps=2, learning_rate=1e-3)
      >>> config = MetaTrainConfig((stage,), horizon=4, evaluate_every=1, evaluate_runs=1)
      >>> task = tasks.get("mlp-digits")
      >>> result = meta_train(Architecture(head="none"), task, config, jax.random.key(0), progress=False)
      >>> [record["step"] for record in result.curve]
      [0, 1, 2]
    """
    tasks = named_tasks(task)
    check_spaces(architecture, tasks)
    init_key, eval_key, outer_key = jax.random.split(key, 3)
    begin = None
    if weights is not None and scalars is not None:
        raise ValueError("Weights to start from have scalars already, so scalars= must be None beside weights=.")
    if weights is None:
        weights = _initial_weights(architecture, tasks, init_key, scalars)
    else:
        check_start(weights, architecture, tasks)
        begin = digest(weights)
    problems = {name: learned_training(architecture, task, config.horizon) for name, task in tasks.items()}
    eval_keys = jax.random.split(eval_key, config.evaluate_runs)

    @jax.jit
    def evaluate(theta: Theta) -> dict[str, Float[Array, ""]]:
        return evaluation(
            {name: training_losses(problem, theta, eval_keys, config.horizon) for name, problem in problems.items()}
        )

    made = provenance(this_command())  # before a long run: the checkout may change meanwhile
    start = functools.partial(start_stage, problems, config, outer_key)
    position = Position(settings_of(architecture, scalars, tasks, config, key, begin))
    state = None
    with failures_explained(), contextlib.ExitStack() as stack:
        checkpoints = None
        if out is not None:
            if is_first():
                stack.enter_context(claimed(Path(out)))
            checkpoints = stack.enter_context(Checkpoints(Path(out, "checkpoints"), config.keep_checkpoints))
            if (latest := checkpoints.latest()) is not None:
                position = resumed(checkpoints, latest, position.settings)
                state = checkpoints.state(latest, jax.eval_shape(lambda: start(position.stage, weights.theta)))
        if state is None:
            state = start(0, weights.theta)
            if out is not None and is_first():
                write_settings(Path(out), config)
        interruption = stack.enter_context(Interruption(wanted=out is not None and jax.process_count() == 1))
        reporter = stack.enter_context(
            Reporter(
                Path(out) if out is not None and is_first() else None,
                position.total(config),
                config.steps,
                progress and is_first(),
            )
        )
        started = time.perf_counter() - position.seconds
        if not position.curve:
            with interruption.nothing_to_save():
                state, result = _evaluated(state, evaluate)
            position.curve.append({"step": 0, **result})
            reporter.evaluation(0, 0, result)
        while True:
            stage = config.stages[position.stage]
            shardings = state_shardings(state)
            state = placed(state, shardings)
            outer_step = make_outer_step(problems, config, position.stage, shardings)
            inner_steps = len(tasks) * stage.estimator.inner_steps(config.horizon)
            reporter.compiling()
            compiled = False
            while position.step < stage.steps:
                with contextlib.nullcontext() if compiled else interruption.nothing_to_save():
                    state, metrics = outer_step(state, outer_key, position.step)
                compiled = True
                position.step += 1
                done = position.total(config)
                reporter.step(done, position.stage, inner_steps, metrics)
                last = position.step == stage.steps
                if last or position.step % config.evaluate_every == 0:
                    reporter.flush()
                    state, result = _evaluated(state, evaluate)
                    state = placed(state, shardings)
                    position.curve.append({"step": done, **result})
                    reporter.evaluation(done, position.stage, result)
                # Read once: a signal after this line is obeyed a step later.
                stop = interruption.received is not None or told_to_stop(done)
                if last or stop or position.step % config.checkpoint_every == 0:
                    reporter.flush()
                    position.seconds = time.perf_counter() - started
                    if checkpoints:
                        checkpoints.save(done, state, dataclasses.asdict(position))
                        reporter.restart_clock()
                if stop:
                    interruption.stop(
                        f"Stopped after outer step {done} of {config.steps}; {out} continues it (--resume)."
                    )
            if position.stage + 1 == len(config.stages):
                break
            position.stage, position.step = position.stage + 1, 0
            state = start(position.stage, state.theta, (state.best_theta, state.best_loss))
    if not any(math.isfinite(record["final_loss"]) for record in position.curve):
        warnings.warn(
            "No evaluation of this run was finite, so that its best weights are those it began with. Lower the "
            "learning rate, or the step size to begin with.",
            RuntimeWarning,
            stacklevel=2,
        )
    # Back from the devices of this run: the user's parameters may live on one of them.
    best, final = (jax.tree.map(jnp.asarray, jax.device_get(theta)) for theta in (state.best_theta, state.theta))
    result = MetaTrainResult(
        weights=dataclasses.replace(weights, theta=best),
        last=dataclasses.replace(weights, theta=final),
        curve=position.curve,
        seconds=position.seconds,
    )
    if out is not None and is_first():
        own = make_card(
            list(tasks.values()),
            architecture,
            config,
            result.curve,
            seconds=result.seconds,
            made=made,
            scalars=None if begin else scalars or InitialScalars(),
        )
        write_results(Path(out), result.weights, {**own, "start": None, "start_digest": begin, **(card or {})})
    return result


def _initial_weights(
    architecture: Architecture, tasks: dict[str, TaskLike], key: Array, scalars: InitialScalars | None = None
) -> MetaWeights:
    """Fresh meta-weights that have every coefficient that a task asks for."""
    spaces = [task_spec(task, architecture.head) for task in tasks.values()]
    first, *others = (init_weights(architecture, space, key, scalars) for space in spaces)
    network = functools.reduce(_merged, (weights.theta.network for weights in others), first.theta.network)
    return dataclasses.replace(first, theta=first.theta._replace(network=network))


def _merged(layers: tuple[Layer, ...], others: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """The first layers, and what only the second ones have."""
    return tuple({**other, **layer} for layer, other in zip(layers, others, strict=True))


def _evaluated(
    state: TrainState, evaluate: Callable[[Theta], dict[str, Float[Array, ""]]]
) -> tuple[TrainState, dict[str, float]]:
    result = evaluate(state.theta)
    loss = result["final_loss"]
    better = loss < state.best_loss
    best_theta = jax.tree.map(lambda a, b: jnp.where(better, a, b), state.theta, state.best_theta)
    state = state._replace(best_theta=best_theta, best_loss=jnp.minimum(loss, state.best_loss))
    return state, {name: float(x) for name, x in result.items()}
