"""Evolution strategies: whole runs, truncations on their own, and truncations without bias."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from optax_unf.meta.estimators.antithetic import AntitheticES, pair_metrics, twice
from optax_unf.meta.estimators.estimator import Metrics, check_truncation, select, staggered, start_runs
from optax_unf.meta.inner import InnerProblem, Theta


@dataclasses.dataclass(frozen=True, kw_only=True)
class FullES(AntitheticES):
    """Evolution strategies over whole runs: each estimate unrolls fresh runs from start to end.

    Unbiased for the outer loss smoothed by the noise; theta moves only once a run.
    """

    def check(self, horizon: int) -> None:
        """See `Estimator.check`."""
        check_truncation(horizon, horizon)

    def inner_steps(self, horizon: int) -> int:
        """See `Estimator.inner_steps`."""
        return 2 * self.pairs * horizon

    def init(self, problem: InnerProblem, horizon: int, theta: Theta, key: Array) -> tuple[()]:
        """See `Estimator.init`: nothing lasts from one estimate to the next."""
        del problem, theta, key
        self.check(horizon)
        return ()

    def estimate(
        self, problem: InnerProblem, horizon: int, theta: Theta, state: tuple[()], key: Array
    ) -> tuple[Theta, tuple[()], Metrics]:
        """See `Estimator.estimate`."""
        noise_key, run_key = jax.random.split(key)
        eps = self._perturbations(theta, noise_key)
        runs = twice(start_runs(problem, theta, run_key, self.pairs))
        _, losses, diverged = self._unrolled(problem, theta, eps, runs, horizon)
        return self._gradient(eps, self._outer_loss(losses)), state, pair_metrics(losses, diverged)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _OnlineES(AntitheticES):
    """Evolution strategies with an estimate from every truncation."""

    truncation: int = 50

    def check(self, horizon: int) -> None:
        """See `Estimator.check`."""
        check_truncation(self.truncation, horizon)

    def inner_steps(self, horizon: int) -> int:
        """See `Estimator.inner_steps`."""
        del horizon
        return 2 * self.pairs * self.truncation


class TruncatedESState(NamedTuple):
    """The inner runs of `TruncatedES`.

    Attributes:
      runs: inner runs, one for each pair, `[pairs, ...]`.
      remaining: inner steps until each restarts, `[pairs]`.
    """

    runs: Any
    remaining: Int[Array, " pairs"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TruncatedES(_OnlineES):
    """Truncated evolution strategies (Metz et al. 2019, arXiv:1810.10180): blind to what theta does later on.

    Both runs of a pair set out from one state, which has forgotten the perturbations that led to it, so that an
    estimate holds only what theta does within one truncation; the run with theta + eps is the one that goes on. With
    `"mean"`, estimates average to the gradient of the truncation's mean loss, averaged over truncations, as those of
    `Backprop` do; with `"final"`, to the sum over truncations of the gradient of the loss at the truncation's end
    (what the loss was at its start does not depend on the perturbation).

    Attributes:
      truncation: inner steps per estimate. For the others see `AntitheticES`.
    """

    def init(self, problem: InnerProblem, horizon: int, theta: Theta, key: Array) -> TruncatedESState:
        """See `Estimator.init`."""
        self.check(horizon)
        run_key, age_key = jax.random.split(key)
        runs = start_runs(problem, theta, run_key, self.pairs)
        return TruncatedESState(runs, staggered(age_key, self.pairs, self.truncation, horizon))

    def estimate(
        self, problem: InnerProblem, horizon: int, theta: Theta, state: TruncatedESState, key: Array
    ) -> tuple[Theta, TruncatedESState, Metrics]:
        """See `Estimator.estimate`."""
        noise_key, run_key = jax.random.split(key)
        eps = self._perturbations(theta, noise_key)
        runs, losses, diverged = self._unrolled(problem, theta, eps, twice(state.runs), self.truncation)
        value = self._outer_loss(losses)
        if self.objective == "final":
            value *= horizon // self.truncation
        remaining = state.remaining - self.truncation
        ended = (remaining <= 0) | diverged
        new = TruncatedESState(
            runs=select(
                ended,
                start_runs(problem, theta, run_key, self.pairs),
                jax.tree.map(lambda x: x[::2], runs),
            ),
            remaining=jnp.where(ended, horizon, remaining),
        )
        return self._gradient(eps, value), new, pair_metrics(losses, diverged)


class Particles(NamedTuple):
    """Pairs of inner runs, each of which keeps a state of its own for the whole run.

    Attributes:
      runs: inner runs, `[2 * pairs, ...]`: of each pair the one that takes +eps, then the one that takes -eps.
      last_loss: the outer loss of the last truncation, `[2 * pairs]`; 0 at the start of a run.
      remaining: inner steps until the pair restarts, `[pairs]`.
    """

    runs: Any
    last_loss: Float[Array, " particles"]
    remaining: Int[Array, " pairs"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _UnbiasedES(_OnlineES):
    """Online evolution strategies that attribute a truncation to all perturbations of its run so far."""

    def _start(self, problem: InnerProblem, horizon: int, theta: Theta, key: Array) -> Particles:
        self.check(horizon)
        run_key, age_key = jax.random.split(key)
        return Particles(
            runs=twice(start_runs(problem, theta, run_key, self.pairs)),
            last_loss=jnp.zeros(2 * self.pairs),
            remaining=staggered(age_key, self.pairs, self.truncation, horizon),
        )

    def _advance(
        self,
        problem: InnerProblem,
        horizon: int,
        theta: Theta,
        particles: Particles,
        eps: Theta,
        direction: Theta,
        key: Array,
    ) -> tuple[Theta, Particles, Bool[Array, " pairs"], Metrics]:
        """The gradient estimate, the particles one truncation on, which pairs start anew, and metrics."""
        runs, losses, diverged = self._unrolled(problem, theta, eps, particles.runs, self.truncation)
        value = loss = self._outer_loss(losses)
        if self.objective == "final":
            # The changes over all truncations sum to the final loss; their mean is what estimates average to.
            value = (loss - particles.last_loss) * (horizon // self.truncation)
        remaining = particles.remaining - self.truncation
        ended = (remaining <= 0) | diverged
        both = jnp.repeat(ended, 2)
        new = Particles(
            runs=select(both, twice(start_runs(problem, theta, key, self.pairs)), runs),
            last_loss=jnp.where(both, 0.0, loss),
            remaining=jnp.where(ended, horizon, remaining),
        )
        return self._gradient(direction, value), new, ended, pair_metrics(losses, diverged)


class PESState(NamedTuple):
    """The state of `PES`.

    Attributes:
      particles: the pairs of inner runs.
      xi: the perturbations that each pair has accumulated over its run, `[pairs, ...]`.
    """

    particles: Particles
    xi: Theta


@dataclasses.dataclass(frozen=True, kw_only=True)
class PES(_UnbiasedES):
    """Persistent evolution strategies (Vicol et al. 2021, arXiv:2112.13835, Algorithm 2).

    Each truncation draws a new perturbation; each pair accumulates its perturbations over the whole of its run, and
    the estimate is the mean over pairs of `xi * (L+ - L-) / (2 sigma^2)`. Averaged over the truncations of a run it
    is the gradient of the outer loss, smoothed by noise that is independent in each truncation.

    Attributes:
      truncation: inner steps per estimate. For the others see `AntitheticES`.
    """

    def init(self, problem: InnerProblem, horizon: int, theta: Theta, key: Array) -> PESState:
        """See `Estimator.init`."""
        xi = jax.tree.map(lambda x: jnp.zeros((self.pairs, *x.shape), x.dtype), theta)
        return PESState(self._start(problem, horizon, theta, key), xi)

    def estimate(
        self, problem: InnerProblem, horizon: int, theta: Theta, state: PESState, key: Array
    ) -> tuple[Theta, PESState, Metrics]:
        """See `Estimator.estimate`."""
        noise_key, run_key = jax.random.split(key)
        eps = self._perturbations(theta, noise_key)
        xi = jax.tree.map(jnp.add, state.xi, eps)
        grad, particles, ended, metrics = self._advance(problem, horizon, theta, state.particles, eps, xi, run_key)
        return grad, PESState(particles, select(ended, jax.tree.map(jnp.zeros_like, xi), xi)), metrics


class NRESState(NamedTuple):
    """The state of `NRES`.

    Attributes:
      particles: the pairs of inner runs.
      eps: the perturbation of each pair, `[pairs, ...]`.
    """

    particles: Particles
    eps: Theta


@dataclasses.dataclass(frozen=True, kw_only=True)
class NRES(_UnbiasedES):
    """Noise-reuse evolution strategies (Li et al. 2023, arXiv:2304.12180; ES-Single of Vicol et al., 2304.11153).

    A pair draws its perturbation at the start of a run and keeps it to the end; the estimate is the mean over pairs of
    `eps * (L+ - L-) / (2 sigma^2)`. Averaged over the truncations of a run it is the estimate of `FullES`, in parts.

    Attributes:
      truncation: inner steps per estimate. For the others see `AntitheticES`.
    """

    def init(self, problem: InnerProblem, horizon: int, theta: Theta, key: Array) -> NRESState:
        """See `Estimator.init`."""
        noise_key, run_key = jax.random.split(key)
        return NRESState(self._start(problem, horizon, theta, run_key), self._perturbations(theta, noise_key))

    def estimate(
        self, problem: InnerProblem, horizon: int, theta: Theta, state: NRESState, key: Array
    ) -> tuple[Theta, NRESState, Metrics]:
        """See `Estimator.estimate`."""
        noise_key, run_key = jax.random.split(key)
        eps = state.eps
        grad, particles, ended, metrics = self._advance(problem, horizon, theta, state.particles, eps, eps, run_key)
        return grad, NRESState(particles, select(ended, self._perturbations(theta, noise_key), eps)), metrics
