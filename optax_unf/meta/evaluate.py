"""Losses of fresh inner runs."""

from jaxtyping import Array, Float

from optax_unf.meta.inner import InnerProblem, Theta, unroll
from optax_unf.meta.particles import map_particles

# The final loss of a run is the mean over its last steps: one batch is noisy.
FINAL_STEPS = 50


def training_losses(problem: InnerProblem, theta: Theta, keys: Array, steps: int) -> Float[Array, "runs steps"]:
    """The training loss before every step of fresh inner runs, one per key, with theta unperturbed.

    Args:
      problem: the inner problem.
      theta: the meta-weights' arrays, or whatever steers the problem's optimizer.
      keys: PRNG keys `[runs]`.
      steps: inner steps of each run.
    """

    def run(key: Array) -> Float[Array, " steps"]:
        return unroll(problem, theta, problem.start(theta, key), steps)[1]

    return map_particles(run, keys)


def final_loss(losses: Float[Array, "runs steps"]) -> Float[Array, " runs"]:
    """The mean loss over the last 50 steps of each run, or over all if there are fewer."""
    return losses[:, -FINAL_STEPS:].mean(1)
