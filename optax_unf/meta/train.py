"""Meta-training: the outer loop."""

import dataclasses
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from optax_unf.meta import checkpoint
from optax_unf.meta.config import MetaTrainConfig, Stage
from optax_unf.meta.estimators import Metrics
from optax_unf.meta.evaluate import final_loss, training_losses
from optax_unf.meta.inner import InnerProblem, Theta, learned_training
from optax_unf.meta.particles import particle_shardings, replicated_shardings
from optax_unf.meta.progress import Progress
from optax_unf.network import OptimizerConfig
from optax_unf.tasks.task import Task, task_spec
from optax_unf.weights import MetaWeights, init_weights

# Inner steps at which an evaluation reports the loss, besides the end.
MARKS = (100, 500, 1000)


class TrainState(NamedTuple):
    """Everything that the rest of a stage depends on.

    Attributes:
      theta: the meta-weights' arrays.
      adam: state of the outer optimizer.
      particles: state of the estimator.
      best_theta: the best meta-weights so far.
      best_loss: their loss on fresh inner runs; infinite before the first evaluation.
    """

    theta: Theta
    adam: Any
    particles: Any
    best_theta: Theta
    best_loss: Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class MetaTrainResult:
    """What a meta-training run leaves behind.

    Attributes:
      weights: the best meta-weights, by the final loss on fresh inner runs.
      last: the meta-weights after the last outer step.
      curve: one record per evaluation: `step` (outer), `final_loss` (mean over fresh inner runs),
        `loss_at_100`, `loss_at_500`, `loss_at_1000`.
      seconds: wall time of the outer steps, evaluations and compilations.
    """

    weights: MetaWeights
    last: MetaWeights
    curve: list[dict[str, float]]
    seconds: float


def meta_train(
    optimizer: OptimizerConfig,
    task: Task,
    config: MetaTrainConfig,
    key: Array,
    *,
    weights: MetaWeights | None = None,
    out: str | Path | None = None,
    progress: bool = True,
) -> MetaTrainResult:
    """Meta-trains a learned optimizer on a task.

    Each outer step is one jitted call: a truncation of all particles under one `lax.scan`, their gradient estimate
    and Adam. The same key gives the same result.

    Args:
      optimizer: architecture of the learned optimizer.
      task: the inner task.
      config: settings.
      key: a PRNG key.
      weights: where to start; by default fresh meta-weights.
      out: folder for `checkpoint.safetensors`. If it holds a checkpoint of this run, the run
        continues from it, exactly as if it had not stopped.
      progress: show a progress bar (if tqdm is installed).

    Raises:
      ValueError: `out` holds a checkpoint of a run with other settings.

    Example:
      >>> import jax
      >>> from optax_unf import OptimizerConfig, tasks
      >>> from optax_unf.meta import PES, MetaTrainConfig, Stage, meta_train
      >>> stage = Stage(PES(pairs=1, truncation=2), steps=2, learning_rate=1e-3)
      >>> config = MetaTrainConfig((stage,), horizon=4, evaluate_every=1, evaluate_runs=1)
      >>> task = tasks.get("mlp-digits")
      >>> result = meta_train(OptimizerConfig(head="none"), task, config, jax.random.key(0), progress=False)
      >>> len(result.curve)
      2
    """
    init_key, eval_key, outer_key = jax.random.split(key, 3)
    if weights is None:
        weights = init_weights(optimizer, task_spec(task), init_key)
    problem = learned_training(optimizer, task)
    eval_keys = jax.random.split(eval_key, config.evaluate_runs)
    evaluate = jax.jit(lambda theta: training_losses(problem, theta, eval_keys, config.horizon))
    settings = _settings(optimizer, config)
    file = Path(out, "checkpoint.safetensors") if out else None
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)

    start = functools.partial(_start_stage, problem, config, outer_key)
    if file and file.exists():
        position = _Position(**checkpoint.load_record(file))
        _check_settings(file, position.settings, settings)
        state = checkpoint.load_state(file, jax.eval_shape(lambda: start(position.stage, weights.theta)))
    else:
        position = _Position(settings=settings)
        state = start(0, weights.theta)
    with Progress(sum(stage.steps for stage in config.stages), progress) as bar:
        while True:
            stage = config.stages[position.stage]
            shardings = _shardings(state)
            state = jax.device_put(state, shardings)
            outer_step = _outer_step(problem, config, stage, shardings)
            stage_key = jax.random.fold_in(outer_key, position.stage)
            while position.step < stage.steps:
                started = time.perf_counter()
                state, metrics = outer_step(state, jax.random.fold_in(stage_key, position.step))
                position.step += 1
                last = position.step == stage.steps
                if last or position.step % config.evaluate_every == 0:
                    state, result = _evaluated(state, evaluate)
                    position.curve.append({"step": position.total(config), **result})
                bar.update(position.total(config), metrics, position.curve)
                position.seconds += time.perf_counter() - started
                if file and (last or position.step % config.checkpoint_every == 0):
                    checkpoint.save(file, state, dataclasses.asdict(position))
            if position.stage + 1 == len(config.stages):
                break
            position.stage, position.step = position.stage + 1, 0
            state = start(position.stage, state.theta, (state.best_theta, state.best_loss))
    # Back from the devices of this run: the user's parameters may live on one of them.
    best, last = (jax.tree.map(jnp.asarray, jax.device_get(theta)) for theta in (state.best_theta, state.theta))
    return MetaTrainResult(
        weights=dataclasses.replace(weights, theta=best),
        last=dataclasses.replace(weights, theta=last),
        curve=position.curve,
        seconds=position.seconds,
    )


@dataclasses.dataclass
class _Position:
    """Where a run stands: what its checkpoint records beside the arrays."""

    settings: dict[str, Any]
    stage: int = 0
    step: int = 0
    seconds: float = 0.0
    curve: list[dict[str, float]] = dataclasses.field(default_factory=list)

    def total(self, config: MetaTrainConfig) -> int:
        return sum(stage.steps for stage in config.stages[: self.stage]) + self.step


def _adam(config: MetaTrainConfig, stage: Stage) -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), optax.adam(stage.rate()))


def _start_stage(
    problem: InnerProblem,
    config: MetaTrainConfig,
    key: Array,
    number: int,
    theta: Theta,
    best: tuple[Theta, Array] | None = None,
) -> TrainState:
    stage = config.stages[number]
    # Steps use keys 0, 1, ... of the stage; its particles start from a key that no step uses.
    particle_key = jax.random.fold_in(jax.random.fold_in(key, number), stage.steps)
    start = jax.jit(lambda theta: stage.estimator.init(problem, config.horizon, theta, particle_key))
    # Copies, because the outer step donates its state.
    theta = jax.tree.map(jnp.copy, theta)
    best_theta, best_loss = best or (jax.tree.map(jnp.copy, theta), jnp.array(jnp.inf))
    return TrainState(theta, _adam(config, stage).init(theta), start(theta), best_theta, best_loss)


def _shardings(state: TrainState) -> TrainState:
    """Where the arrays of a state live, from step to step: otherwise the second step would compile anew."""
    return TrainState(*replicated_shardings(state))._replace(particles=particle_shardings(state.particles))


def _outer_step(
    problem: InnerProblem, config: MetaTrainConfig, stage: Stage, shardings: TrainState
) -> Callable[[TrainState, Array], tuple[TrainState, Metrics]]:
    adam = _adam(config, stage)

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=(shardings, None))
    def outer_step(state: TrainState, key: Array) -> tuple[TrainState, Metrics]:
        grad, particles, metrics = stage.estimator.estimate(problem, config.horizon, state.theta, state.particles, key)
        updates, adam_state = adam.update(grad, state.adam, state.theta)
        theta = optax.apply_updates(state.theta, updates)
        metrics["grad_norm"] = optax.tree.norm(grad)
        return state._replace(theta=theta, adam=adam_state, particles=particles), metrics

    return outer_step


def _evaluated(
    state: TrainState, evaluate: Callable[[Theta], Float[Array, "runs steps"]]
) -> tuple[TrainState, dict[str, float]]:
    losses = evaluate(state.theta)
    # A run that diverged must not win, and its NaN must not hide the others.
    loss = jnp.nan_to_num(final_loss(losses), nan=jnp.inf, posinf=jnp.inf).mean()
    better = loss < state.best_loss
    best_theta = jax.tree.map(lambda a, b: jnp.where(better, a, b), state.theta, state.best_theta)
    state = state._replace(best_theta=best_theta, best_loss=jnp.minimum(loss, state.best_loss))
    curve = losses.mean(0)
    marks = {f"loss_at_{step}": float(curve[step - 5 : step + 5].mean()) for step in MARKS if step + 5 <= curve.size}
    return state, {"final_loss": float(loss), **marks}


def _settings(optimizer: OptimizerConfig, config: MetaTrainConfig) -> dict[str, Any]:
    """Settings as JSON holds them, which has no tuples."""
    settings = {"optimizer": dataclasses.asdict(optimizer), **dataclasses.asdict(config)}
    for stage, described in zip(config.stages, settings["stages"], strict=True):
        described["estimator"] = {"name": type(stage.estimator).__name__, **described["estimator"]}
    return json.loads(json.dumps(settings))


def _check_settings(file: Path, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    for name in wanted:
        if stored.get(name) != wanted[name]:
            raise ValueError(
                f"{file} belongs to a run with other settings: its {name} is {stored.get(name)}, not {wanted[name]}. "
                f"Give a new output folder, or the old settings."
            )
