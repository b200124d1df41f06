"""Whole inner runs from fresh parameters, to the loss on held-out data."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from optax_unf.meta.inner import Theta, Training, unroll
from optax_unf.meta.particles import map_particles
from optax_unf.tasks.task import as_task, check_held_out


class Runs(NamedTuple):
    """Whole inner runs.

    Attributes:
      losses: the training loss before every step, `[runs, steps]`.
      validation: the held-out loss of the final parameters, `[runs]`.
    """

    losses: Float[Array, "runs steps"]
    validation: Float[Array, " runs"]


def fresh_keys(seeds: int) -> Array:
    """The keys `[seeds]` of the runs that evaluations and comparisons report: the first ones are always the same."""
    return numbered_keys(2025, seeds)


def fresh_runs(training: Training, theta: Theta, keys: Array, steps: int) -> Runs:
    """Trains fresh networks, and takes their loss on the held-out data at the end.

    Args:
      training: the task and the optimizer.
      theta: meta-weights' arrays, or whatever steers the optimizer.
      keys: PRNG keys `[runs]`; runs with equal keys have the same initial parameters and batches.
      steps: inner steps of each run.

    Raises:
      ValueError: the task has no held-out data.

    Example:
      >>> from optax_unf import load_weights, tasks
      >>> from optax_unf.meta import learned_training
      >>> weights = load_weights("mlp-fashion-mnist-sgdm")
      >>> training = learned_training(weights.architecture, tasks.get("mlp-digits"))
      >>> runs = fresh_runs(training, weights.theta, fresh_keys(2), steps=3)
      >>> runs.losses.shape, runs.validation.shape
      ((2, 3), (2,))
    """
    check_held_out(training.task)

    @jax.jit
    def run_all(theta: Theta, keys: Array) -> Runs:
        def run(key: Array) -> Runs:
            end, losses = unroll(training, theta, training.start(theta, key), steps)
            return Runs(losses, training.task.loss(end.params, as_task(training.task).held_out()))

        return map_particles(run, keys)

    return run_all(theta, keys)


def numbered_keys(seed: int, count: int) -> Array:
    """Keys `[count]` of which the first ones do not depend on how many there are."""
    return jax.vmap(lambda n: jax.random.fold_in(jax.random.key(seed), n))(jnp.arange(count))
