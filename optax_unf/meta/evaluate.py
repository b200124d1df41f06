"""Losses of fresh inner runs."""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float

from optax_unf.meta.inner import InnerProblem, Theta, unroll
from optax_unf.meta.particles import map_particles

# The final loss of a run is the mean over its last steps: one batch is noisy.
FINAL_STEPS = 50
# Inner steps at which an evaluation reports the loss, besides the end.
MARKS = (100, 500, 1000)


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


def evaluation(losses: Mapping[str, Float[Array, "runs steps"]]) -> dict[str, Float[Array, ""]]:
    """What meta-training reports of fresh inner runs, as means over tasks and runs.

    Args:
      losses: for each task the losses of its runs, of equal numbers of steps.

    Returns:
      `final_loss`, infinite where a run diverged; `loss_at_100`, `loss_at_500` and `loss_at_1000` where runs are that
      long: means over the ten steps around; of more than one task also the `final_loss/TASK` of each.

    Example:
      >>> {name: float(loss) for name, loss in evaluation({"a": jnp.ones((2, 9)), "b": jnp.zeros((2, 9))}).items()}
      {'final_loss': 0.5, 'final_loss/a': 1.0, 'final_loss/b': 0.0}
    """
    # A run that diverged must not win, and its NaN must not hide the others.
    final = {task: jnp.nan_to_num(final_loss(x), nan=jnp.inf, posinf=jnp.inf).mean() for task, x in losses.items()}
    curve = jnp.stack([x.mean(0) for x in losses.values()]).mean(0)
    marks = {f"loss_at_{step}": curve[step - 5 : step + 5].mean() for step in MARKS if step + 5 <= curve.size}
    each = {f"final_loss/{task}": loss for task, loss in final.items()} if len(final) > 1 else {}
    return {"final_loss": jnp.stack(list(final.values())).mean(), **marks, **each}
