"""Backpropagation through truncations of inner runs."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from optax_unf.meta.estimators.estimator import Metrics, check_truncation, select, staggered, start_runs
from optax_unf.meta.inner import InnerProblem, Theta, unroll
from optax_unf.meta.particles import map_particles


class BackpropState(NamedTuple):
    """The inner runs of `Backprop`.

    Attributes:
      runs: inner runs, `[runs, ...]`.
      remaining: inner steps of estimates until each restarts, `[runs]`.
      fresh: which of them have yet to skip their first steps, `[runs]`.
    """

    runs: Any
    remaining: Int[Array, " runs"]
    fresh: Bool[Array, " runs"]


@dataclasses.dataclass(frozen=True)
class Backprop:
    """Backpropagation through the truncation, each inner step rematerialized.

    Nearly free of noise, and biased towards what helps within the truncation: a warm start for PES. The objective is
    the mean loss of the truncation, or of its last steps; the gradient of each run is clipped before the mean is taken.
    A truncation of the whole horizon has no bias, where gradients do not explode on the way.

    A run whose loss rises above `max_loss` takes no further steps, and restarts. Its gradient counts, because it leads
    away from there; left out, meta-weights with which all runs diverge would have none.

    Attributes:
      runs: inner runs.
      truncation: inner steps per estimate.
      clip_norm: the gradient of each run is scaled down to this norm.
      max_loss: where the loss is larger or not finite, the run has diverged; so above the loss of fresh parameters.
      skip: steps at the start of each run that go without an estimate. Their gradients are far larger than those of the
        last steps, and outweigh them. `inner_steps` leaves them out.
      final_steps: how many losses at the end of the truncation the objective is the mean of; `None` for all.
    """

    runs: int = 16
    truncation: int = 50
    clip_norm: float = 1.0
    max_loss: float = 30.0
    skip: int = 0
    final_steps: int | None = None

    def __post_init__(self) -> None:
        if self.runs < 1:
            raise ValueError(f"Backprop needs at least one inner run, but runs is {self.runs}.")

    def check(self, horizon: int) -> None:
        """See `Estimator.check`."""
        if not 0 <= self.skip < horizon:
            raise ValueError(f"skip must be at least 0 and below the horizon, {horizon}, but is {self.skip}.")
        check_truncation(self.truncation, horizon, self.skip)
        if self.final_steps is not None and not 1 <= self.final_steps <= self.truncation:
            raise ValueError(
                f"final_steps must be from 1 to the truncation, {self.truncation}, but is {self.final_steps}."
            )

    def inner_steps(self, horizon: int) -> int:
        """See `Estimator.inner_steps`."""
        del horizon
        return self.runs * self.truncation

    def init(self, problem: InnerProblem, horizon: int, theta: Theta, key: Array) -> BackpropState:
        """See `Estimator.init`."""
        self.check(horizon)
        run_key, age_key = jax.random.split(key)
        return BackpropState(
            runs=start_runs(problem, theta, run_key, self.runs),
            remaining=staggered(age_key, self.runs, self.truncation, horizon - self.skip),
            fresh=jnp.full(self.runs, self.skip > 0),
        )

    def estimate(
        self, problem: InnerProblem, horizon: int, theta: Theta, state: BackpropState, key: Array
    ) -> tuple[Theta, BackpropState, Metrics]:
        """See `Estimator.estimate`."""
        stopping = _Stopping(problem, self.max_loss)

        def outer_loss(theta: Theta, run: Any) -> tuple[Float[Array, ""], tuple[Any, Array]]:
            run, losses = unroll(stopping, theta, run, self.truncation, rematerialize=True)
            outer = losses[-(self.final_steps or self.truncation) :].mean()
            return outer, (run, (losses <= self.max_loss).all())

        def skipped(theta: Theta, run: Any) -> Any:
            return unroll(stopping, theta, run, self.skip)[0]

        def one(particle: tuple[Theta, Any, Array]) -> tuple[Theta, Any, Array, Array, Array]:
            theta, run, fresh = particle
            if self.skip:
                run = jax.lax.cond(fresh, skipped, lambda _, run: run, theta, run)
            (loss, (run, held)), grad = jax.value_and_grad(outer_loss, has_aux=True)(theta, run)
            norm = optax.tree.norm(grad)
            finite = jnp.isfinite(norm) & jnp.isfinite(loss)
            scale = self.clip_norm / jnp.maximum(norm, self.clip_norm)
            return jax.tree.map(lambda g: jnp.where(finite, g * scale, 0.0), grad), run, loss, finite, held

        thetas = jax.tree.map(lambda x: jnp.broadcast_to(x, (self.runs, *x.shape)), theta)
        grads, runs, losses, finite, held = map_particles(one, (thetas, state.runs, state.fresh))
        count, diverged = jnp.maximum(finite.sum(), 1), ~(finite & held)
        remaining = state.remaining - self.truncation
        ended = (remaining <= 0) | diverged
        new = BackpropState(
            runs=select(ended, start_runs(problem, theta, key, self.runs), runs),
            remaining=jnp.where(ended, horizon - self.skip, remaining),
            fresh=ended & (self.skip > 0),
        )
        loss = jnp.where(finite, losses, 0.0).sum() / count.astype(losses.dtype)
        metrics = {"loss": loss, "diverged": diverged.sum()}
        return jax.tree.map(lambda g: g.sum(0) / count.astype(g.dtype), grads), new, metrics


class _Stopping(NamedTuple):
    """An inner problem whose runs take no step from where their loss is too large."""

    problem: InnerProblem
    max_loss: float

    def start(self, theta: Theta, key: Array) -> Any:
        return self.problem.start(theta, key)

    def step(self, theta: Theta, run: Any) -> tuple[Any, Float[Array, ""]]:
        new, loss = self.problem.step(theta, run)
        return jax.tree.map(lambda x, y: jnp.where(loss <= self.max_loss, x, y), new, run), loss
