"""Optimizers that are tuned by their rate, on a grid."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from optax_unf.compare.results import mean_and_error
from optax_unf.meta.evaluate import final_loss
from optax_unf.meta.fresh import numbered_keys
from optax_unf.meta.inner import Training, unroll
from optax_unf.meta.particles import map_particles
from optax_unf.tasks.task import TaskLike

WEIGHT_DECAY = 1e-4
TUNING_SEEDS = 3
# A grid that ends at its best rate grows by one rate at a time, but not forever.
_MOST_RATES = 30


@dataclasses.dataclass(frozen=True)
class Baseline:
    """An optimizer that is tuned by its rate.

    Attributes:
      name: its name.
      make: the optax optimizer of a rate and a number of steps.
      middle: the middle of the grid: rates from a 16th of it to 16 times it, each twice the one before.
    """

    name: str
    make: Callable[[Float[Array, ""], int], optax.GradientTransformation]
    middle: float

    @property
    def rates(self) -> tuple[float, ...]:
        """The 9 rates of the grid."""
        return tuple(self.middle * 2.0**power for power in range(-4, 5))

    def training(self, task: TaskLike, steps: int) -> Training:
        """Training of a task in so many steps, theta being the rate."""
        return Training(task, lambda rate: self.make(rate, steps))


ADAM = Baseline("Adam", lambda rate, steps: optax.adam(rate), 0.01)
ADAM_COSINE = Baseline("Adam, cosine", lambda rate, steps: optax.adam(_cosine(rate, steps)), 0.01)
BASELINES = (
    ADAM,
    ADAM_COSINE,
    Baseline("AdamW, cosine", lambda rate, steps: optax.adamw(_cosine(rate, steps), weight_decay=WEIGHT_DECAY), 0.01),
    Baseline("SGDM", lambda rate, steps: optax.sgd(rate, momentum=0.9), 0.04),
)


def _cosine(rate: Float[Array, ""], steps: int) -> optax.Schedule:
    return optax.cosine_decay_schedule(rate, steps)  # pyright: ignore[reportArgumentType]


def tune(baseline: Baseline, task: TaskLike, steps: int) -> dict[float, float]:
    """The mean final training loss over the tuning seeds, at each rate of the grid and of what it took beyond.

    The grid is extended by one rate at a time until its best rate is not at an end.

    Args:
      baseline: the optimizer.
      task: the task.
      steps: inner steps of each run.

    Raises:
      ValueError: no rate is best after many extensions.
    """
    training = baseline.training(task, steps)
    keys = numbered_keys(2024, TUNING_SEEDS)

    @jax.jit
    def final(particles: tuple[Array, Array]) -> Float[Array, " particles"]:
        def run(particle: tuple[Array, Array]) -> Float[Array, ""]:
            rate, key = particle
            return final_loss(unroll(training, rate, training.start(rate, key), steps)[1][None])[0]

        return map_particles(run, particles)

    losses: dict[float, float] = {}
    new = list(baseline.rates)
    while new:
        rates = jnp.repeat(jnp.asarray(new, jnp.float32), len(keys))
        found = np.asarray(final((rates, jnp.tile(keys, len(new))))).reshape(len(new), -1)
        losses |= {rate: mean_and_error(x)[0] for rate, x in zip(new, found, strict=True)}
        first, *_, last = sorted(losses)
        best = best_rate(losses)
        new = [first / 2] if best == first else [last * 2] if best == last else []
        if len(losses) >= _MOST_RATES:
            raise ValueError(
                f"The best rate of {baseline.name} must lie inside a grid, but of {len(losses)} rates from {first:.2g} "
                f"to {last:.2g} the best is {best:.2g}, with a final training loss of {losses[best]:.4g}."
            )
    return dict(sorted(losses.items()))


def best_rate(losses: Mapping[float, float]) -> float:
    """The rate with the lowest loss."""
    return min(sorted(losses), key=lambda rate: losses[rate])
