"""Estimators of the gradient of the outer loss, behind one interface."""

import dataclasses
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from optax_unf.meta.inner import InnerProblem, Theta, unroll
from optax_unf.meta.particles import map_particles

Objective: TypeAlias = Literal["final", "mean"]
Metrics: TypeAlias = dict[str, Float[Array, ""]]


class Estimator(Protocol):
    """Estimates the gradient of the outer loss with respect to theta from truncations of inner runs.

    Attributes:
      truncation: inner steps per estimate, of each run.
    """

    truncation: int

    def init(self, problem: InnerProblem, horizon: int, theta: Theta, key: Array) -> Any:
        """Staggered inner runs: the first run of each ends early, at a random multiple of the truncation."""
        ...

    def estimate(
        self, problem: InnerProblem, horizon: int, theta: Theta, state: Any, key: Array
    ) -> tuple[Theta, Any, Metrics]:
        """A gradient estimate, the state one truncation on, and `{"loss", "diverged", ...}`."""
        ...


def check_truncation(truncation: int, horizon: int) -> None:
    """Raises ValueError unless whole truncations make up the horizon."""
    if not 1 <= truncation <= horizon or horizon % truncation:
        raise ValueError(
            f"The truncation must be between 1 and the horizon and divide it, but the truncation is {truncation} and "
            f"the horizon {horizon}. Shorten the truncation, or lengthen the horizon to a multiple of it."
        )


class PESState(NamedTuple):
    """The pairs of particles of PES.

    Attributes:
      runs: inner runs, `[2 * pairs, ...]`: first all that took +eps, then all that took -eps.
      xi: the perturbations that each pair has accumulated over its run, `[pairs, ...]`.
      last_loss: the loss at the end of the last truncation, `[2 * pairs]`; 0 at the start of a run.
      remaining: inner steps until the pair restarts, `[pairs]`.
    """

    runs: Any
    xi: Theta
    last_loss: Float[Array, " particles"]
    remaining: Int[Array, " pairs"]


@dataclasses.dataclass(frozen=True)
class PES:
    """Persistent evolution strategies (Vicol et al. 2021, arXiv:2112.13835, Algorithm 2).

    Each truncation perturbs theta by +-eps; each pair accumulates its perturbations over the whole of its run, and
    the estimate is the mean over pairs of `xi * (L+ - L-) / (2 sigma^2)`. Averaged over the truncations of a run it
    is the gradient of the outer loss smoothed by the noise, without bias from the truncation.

    Attributes:
      pairs: antithetic pairs of inner runs. A pair shares initial parameters and batches.
      truncation: inner steps per estimate.
      sigma: standard deviation of the perturbation.
      objective: `"final"`: the loss at the end of the run, telescoped, so that each truncation contributes how much
        it changed the loss; `"mean"`: the mean loss over the run.
      final_steps: the loss at the end of a truncation is the mean over this many last steps.
      max_loss: where a loss is larger or not finite, it counts as this much; a pair with a loss that is not finite
        restarts.
      persistent: whether perturbations accumulate over a run. Without, this is plain truncated evolution strategies,
        which is blind to what theta does to the truncations after its own.
    """

    pairs: int = 16
    truncation: int = 50
    sigma: float = 0.01
    objective: Objective = "final"
    final_steps: int = 10
    max_loss: float = 10.0
    persistent: bool = True

    def __post_init__(self) -> None:
        if self.pairs < 1:
            raise ValueError(f"PES needs at least one pair of particles, but pairs is {self.pairs}.")
        if not self.sigma > 0:
            raise ValueError(f"sigma must be positive, but is {self.sigma}.")
        if self.objective not in ("final", "mean"):
            raise ValueError(f"objective must be 'final' or 'mean', but is {self.objective!r}.")

    def init(self, problem: InnerProblem, horizon: int, theta: Theta, key: Array) -> PESState:
        """See `Estimator.init`."""
        check_truncation(self.truncation, horizon)
        run_key, age_key = jax.random.split(key)
        return PESState(
            runs=self._start(problem, theta, jax.random.split(run_key, self.pairs)),
            xi=jax.tree.map(lambda x: jnp.zeros((self.pairs, *x.shape), x.dtype), theta),
            last_loss=jnp.zeros(2 * self.pairs),
            remaining=_staggered(age_key, self.pairs, self.truncation, horizon),
        )

    def estimate(
        self, problem: InnerProblem, horizon: int, theta: Theta, state: PESState, key: Array
    ) -> tuple[Theta, PESState, Metrics]:
        """See `Estimator.estimate`."""
        noise_key, run_key = jax.random.split(key)
        eps = _noise(theta, noise_key, self.pairs, self.sigma)
        xi = jax.tree.map(jnp.add, state.xi, eps) if self.persistent else eps
        thetas = jax.tree.map(lambda x, e: jnp.concatenate([x + e, x - e]), theta, eps)
        runs, losses = map_particles(lambda particle: unroll(problem, *particle, self.truncation), (thetas, state.runs))
        finite = jnp.isfinite(losses).all(1)
        losses = jnp.where(jnp.isfinite(losses), losses, self.max_loss).clip(max=self.max_loss)
        if self.objective == "final":
            last_loss = losses[:, -self.final_steps :].mean(1)
            # The steps of all truncations sum to the final loss; their mean is what estimates average to.
            value = (last_loss - state.last_loss) * (horizon // self.truncation)
        else:
            last_loss = state.last_loss
            value = losses.mean(1)
        slope = (value[: self.pairs] - value[self.pairs :]) / (2 * self.sigma**2)
        grad = jax.tree.map(lambda x: jnp.tensordot(slope, x, 1) / self.pairs, xi)
        diverged = ~(finite[: self.pairs] & finite[self.pairs :])
        remaining = state.remaining - self.truncation
        ended = (remaining <= 0) | diverged
        fresh = self._start(problem, theta, jax.random.split(run_key, self.pairs))
        new = PESState(
            runs=_where(jnp.tile(ended, 2), fresh, runs),
            xi=_where(ended, jax.tree.map(jnp.zeros_like, xi), xi),
            last_loss=jnp.where(jnp.tile(ended, 2), 0.0, last_loss),
            remaining=jnp.where(ended, horizon, remaining),
        )
        return grad, new, {"loss": losses.mean(), "diverged": diverged.sum()}

    def _start(self, problem: InnerProblem, theta: Theta, keys: Array) -> Any:
        runs = _start(problem, theta, keys)
        return jax.tree.map(lambda x: jnp.concatenate([x, x]), runs)


class BackpropState(NamedTuple):
    """The inner runs of `Backprop`.

    Attributes:
      runs: inner runs, `[runs, ...]`.
      remaining: inner steps until each restarts, `[runs]`.
    """

    runs: Any
    remaining: Int[Array, " runs"]


@dataclasses.dataclass(frozen=True)
class Backprop:
    """Backpropagation through the truncation, each inner step rematerialized.

    Nearly free of noise, and biased towards what helps within the truncation: a warm start for PES. The objective is
    the mean loss of the truncation; the gradient of each run is clipped before the mean is taken.

    Attributes:
      runs: inner runs.
      truncation: inner steps per estimate.
      clip_norm: the gradient of each run is scaled down to this norm.
    """

    runs: int = 16
    truncation: int = 50
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        if self.runs < 1:
            raise ValueError(f"Backprop needs at least one inner run, but runs is {self.runs}.")

    def init(self, problem: InnerProblem, horizon: int, theta: Theta, key: Array) -> BackpropState:
        """See `Estimator.init`."""
        check_truncation(self.truncation, horizon)
        run_key, age_key = jax.random.split(key)
        return BackpropState(
            runs=_start(problem, theta, jax.random.split(run_key, self.runs)),
            remaining=_staggered(age_key, self.runs, self.truncation, horizon),
        )

    def estimate(
        self, problem: InnerProblem, horizon: int, theta: Theta, state: BackpropState, key: Array
    ) -> tuple[Theta, BackpropState, Metrics]:
        """See `Estimator.estimate`."""

        def outer_loss(theta: Theta, run: Any) -> tuple[Float[Array, ""], Any]:
            run, losses = unroll(problem, theta, run, self.truncation, rematerialize=True)
            return losses.mean(), run

        def one(particle: tuple[Theta, Any]) -> tuple[Theta, Any, Array, Array]:
            (loss, run), grad = jax.value_and_grad(outer_loss, has_aux=True)(*particle)
            norm = optax.tree.norm(grad)
            finite = jnp.isfinite(norm) & jnp.isfinite(loss)
            scale = self.clip_norm / jnp.maximum(norm, self.clip_norm)
            return jax.tree.map(lambda g: jnp.where(finite, g * scale, 0.0), grad), run, loss, finite

        thetas = jax.tree.map(lambda x: jnp.broadcast_to(x, (self.runs, *x.shape)), theta)
        grads, runs, losses, finite = map_particles(one, (thetas, state.runs))
        count = jnp.maximum(finite.sum(), 1)
        remaining = state.remaining - self.truncation
        ended = (remaining <= 0) | ~finite
        fresh = _start(problem, theta, jax.random.split(key, self.runs))
        new = BackpropState(_where(ended, fresh, runs), jnp.where(ended, horizon, remaining))
        metrics = {"loss": jnp.where(finite, losses, 0.0).sum() / count, "diverged": (~finite).sum()}
        return jax.tree.map(lambda g: g.sum(0) / count, grads), new, metrics


def _start(problem: InnerProblem, theta: Theta, keys: Array) -> Any:
    return jax.vmap(lambda key: problem.start(theta, key))(keys)


def _staggered(key: Array, count: int, truncation: int, horizon: int) -> Int[Array, " count"]:
    return truncation * jax.random.randint(key, (count,), 1, horizon // truncation + 1)


def _noise(theta: Theta, key: Array, count: int, sigma: float) -> Theta:
    leaves, treedef = jax.tree.flatten(theta)
    keys = jax.random.split(key, len(leaves))
    return treedef.unflatten(
        [sigma * jax.random.normal(k, (count, *x.shape), x.dtype) for k, x in zip(keys, leaves, strict=True)]
    )


def _where(mask: Array, a: PyTree, b: PyTree) -> PyTree:
    return jax.tree.map(lambda x, y: jnp.where(mask.reshape(-1, *[1] * (x.ndim - 1)), x, y), a, b)
