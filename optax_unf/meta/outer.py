"""One outer step: a gradient estimate on every task, and Adam."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from optax_unf.meta.config import MetaTrainConfig, Stage
from optax_unf.meta.estimators.estimator import Metrics
from optax_unf.meta.inner import InnerProblem, Theta
from optax_unf.meta.particles import particle_shardings, replicated_shardings
from optax_unf.meta.scalars import Decoding, around, decode, encode, two_rates, with_positive_beta

Problems: TypeAlias = Mapping[str, InnerProblem]


class TrainState(NamedTuple):
    """Everything that the rest of a stage depends on.

    Attributes:
      theta: the meta-weights' arrays.
      adam: state of the outer optimizer.
      particles: state of the estimator, one for each task.
      best_theta: the best meta-weights so far.
      best_loss: their loss on fresh inner runs; infinite before the first evaluation.
    """

    theta: Theta
    adam: Any
    particles: tuple[Any, ...]
    best_theta: Theta
    best_loss: Float[Array, ""]


def start_stage(
    problems: Problems,
    config: MetaTrainConfig,
    key: Array,
    number: int,
    theta: Theta,
    best: tuple[Theta, Array] | None = None,
) -> TrainState:
    """The state before the first outer step of a stage.

    Args:
      problems: the inner problem of each task, by its name.
      config: settings of the run.
      key: the run's key for outer steps.
      number: of the stage.
      theta: where to start.
      best: the best meta-weights so far, and their loss.
    """
    stage = config.stages[number]
    # Steps use keys 0, 1, ... of the stage; its particles start from a key that no step uses.
    particle_key = jax.random.fold_in(jax.random.fold_in(key, number), stage.steps)

    @jax.jit
    def start(theta: Theta) -> tuple[Any, ...]:
        particles = []
        for n, problem in enumerate(problems.values()):
            seen, part = _seen(stage, problem, theta)
            own_key = jax.random.fold_in(particle_key, n)
            particles.append(stage.estimator.init(seen, config.horizon, part, own_key))
        return _strong(tuple(particles))

    # Copies, because the outer step donates its state.
    theta = _strong(theta)
    if stage.log_beta:
        theta = with_positive_beta(theta)
    best_theta, best_loss = best or (jax.tree.map(jnp.copy, theta), jnp.float32(jnp.inf))
    return TrainState(theta, _adam(config, stage).init(theta), start(theta), best_theta, best_loss)


def state_shardings(state: TrainState) -> TrainState:
    """Where the arrays of a state live, from step to step: otherwise the second step would compile anew."""
    return TrainState(*replicated_shardings(state))._replace(particles=particle_shardings(state.particles))


def make_outer_step(
    problems: Problems, config: MetaTrainConfig, number: int, shardings: TrainState
) -> Callable[[TrainState, Array, int], tuple[TrainState, Metrics]]:
    """The outer step of a stage as one jitted function, which donates its state.

    Args:
      problems: the inner problem of each task, by its name.
      config: settings of the run.
      number: of the stage.
      shardings: of the state.

    Returns:
      A function of the state, the run's key for outer steps, and the number of the step in its stage. Its metrics are
      those of the estimator, averaged over tasks (of several, also the `loss/TASK` of each), `grad_norm` and
      `learning_rate`.
    """
    stage = config.stages[number]
    adam = _adam(config, stage)
    decoding = [Decoding(problem) if stage.log_beta else problem for problem in problems.values()]

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=(shardings, None))
    def outer_step(state: TrainState, key: Array, step: int) -> tuple[TrainState, Metrics]:
        step_key = jax.random.fold_in(jax.random.fold_in(key, number), step)
        theta = encode(state.theta) if stage.log_beta else state.theta
        estimates = []
        for n, (problem, own) in enumerate(zip(decoding, state.particles, strict=True)):
            seen, part = _seen(stage, problem, theta)
            own_key = jax.random.fold_in(step_key, n)
            estimates.append(stage.estimator.estimate(seen, config.horizon, part, own, own_key))
        grads, particles, metrics = zip(*estimates, strict=True)
        grad = _mean(grads)
        if stage.trained == "scalars":
            grad = jax.tree.map(jnp.zeros_like, theta)._replace(scalars=grad.scalars)
        updates, adam_state = adam.update(grad, state.adam)
        theta = jax.tree.map(jnp.add, theta, updates)
        reported = {
            **_mean(metrics),
            "diverged": sum(own["diverged"] for own in metrics),
            "grad_norm": optax.tree.norm(grad),
            "learning_rate": stage.rate()(step),
        }
        if len(problems) > 1:
            reported |= {f"loss/{task}": own["loss"] for task, own in zip(problems, metrics, strict=True)}
        return state._replace(
            theta=decode(theta) if stage.log_beta else theta, adam=adam_state, particles=particles
        ), reported

    return outer_step


def _seen(stage: Stage, problem: InnerProblem, theta: Theta) -> tuple[InnerProblem, Theta]:
    """What the estimator of a stage sees: all meta-weights, or the scalars alone."""
    return around(problem, theta) if stage.trained == "scalars" else (problem, theta)


def _adam(config: MetaTrainConfig, stage: Stage) -> optax.GradientTransformation:
    rate = stage.rate()
    adam = optax.adam(rate) if stage.scalar_rate is None else two_rates(rate, stage.rate(stage.scalar_rate))
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adam)


def _strong(tree: Any) -> Any:
    """Copies of strong type, as a step gives them back: otherwise the second step would compile anew."""
    return jax.tree.map(lambda x: jnp.array(x, x.dtype), tree)


def _mean(trees: tuple[Any, ...]) -> Any:
    return jax.tree.map(lambda *xs: sum(xs) / len(xs), *trees)
