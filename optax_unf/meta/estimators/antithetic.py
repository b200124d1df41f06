"""Antithetic pairs: inner runs with theta + eps and theta - eps, and the gradient that they give."""

import dataclasses
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from optax_unf.meta.estimators.estimator import Metrics
from optax_unf.meta.inner import InnerProblem, Theta, unroll
from optax_unf.meta.particles import map_particles

Objective: TypeAlias = Literal["final", "mean"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AntitheticES:
    """What the evolution strategies have in common.

    The two runs of a pair share initial parameters and batches, and take theta + eps and theta - eps, with
    eps ~ N(0, sigma^2 I). The estimate is the mean over pairs of `direction * (L+ - L-) / (2 sigma^2)`.

    Attributes:
      pairs: antithetic pairs of inner runs.
      sigma: standard deviation of the perturbation.
      objective: `"final"`: the loss at the end of the run; over truncations it is telescoped, so that each contributes
        how much it changed the loss. `"mean"`: the mean loss over the run.
      final_steps: the loss at the end (of a run or a truncation) is the mean over this many last steps.
      max_loss: where a loss is larger or not finite, it counts as this much; a pair with a loss that is not finite
        restarts.
    """

    pairs: int = 16
    sigma: float = 0.01
    objective: Objective = "final"
    final_steps: int = 10
    max_loss: float = 30.0

    def __post_init__(self) -> None:
        if self.pairs < 1:
            raise ValueError(f"{type(self).__name__} needs at least one pair of particles, but pairs is {self.pairs}.")
        if not self.sigma > 0:
            raise ValueError(f"sigma must be positive, but is {self.sigma}.")
        if self.objective not in ("final", "mean"):
            raise ValueError(f"objective must be 'final' or 'mean', but is {self.objective!r}.")

    def _perturbations(self, theta: Theta, key: Array) -> Theta:
        leaves, treedef = jax.tree.flatten(theta)
        keys = jax.random.split(key, len(leaves))
        noise = [jax.random.normal(k, (self.pairs, *x.shape), x.dtype) for k, x in zip(keys, leaves, strict=True)]
        return treedef.unflatten([self.sigma * x for x in noise])

    def _unrolled(
        self, problem: InnerProblem, theta: Theta, eps: Theta, runs: Any, length: int
    ) -> tuple[Any, Float[Array, "particles length"], Bool[Array, " pairs"]]:
        """The runs of theta + eps and theta - eps in turn, `length` steps on; losses; which pairs diverged."""
        thetas = jax.tree.map(lambda x, e: _side_by_side(x + e, x - e), theta, eps)
        runs, losses = map_particles(lambda particle: unroll(problem, *particle, length), (thetas, runs))
        finite = jnp.isfinite(losses)
        losses = jnp.where(finite, losses, self.max_loss).clip(max=self.max_loss)
        return runs, losses, ~finite.reshape(self.pairs, 2, length).all((1, 2))

    def _outer_loss(self, losses: Float[Array, "particles length"]) -> Float[Array, " particles"]:
        return (losses[:, -self.final_steps :] if self.objective == "final" else losses).mean(1)

    def _gradient(self, direction: Theta, value: Float[Array, " particles"]) -> Theta:
        slope = (value[::2] - value[1::2]) / (2 * self.sigma**2)
        return jax.tree.map(lambda x: jnp.tensordot(slope, x, 1) / self.pairs, direction)


def _side_by_side(plus: Shaped[Array, "pairs *shape"], minus: Shaped[Array, "pairs *shape"]) -> Array:
    """The particles `[2 * pairs, *shape]` in turn: devices that part them evenly hold whole pairs."""
    return jnp.stack([plus, minus], axis=1).reshape(2 * plus.shape[0], *plus.shape[1:])


def twice(runs: Any) -> Any:
    """The same runs for both particles of each pair."""
    return jax.tree.map(lambda x: _side_by_side(x, x), runs)


def pair_metrics(losses: Float[Array, "particles length"], diverged: Bool[Array, " pairs"]) -> Metrics:
    """See `Estimator.estimate`."""
    return {"loss": losses.mean(), "diverged": diverged.sum()}
