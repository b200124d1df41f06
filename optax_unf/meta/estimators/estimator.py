"""What estimators of the gradient of the outer loss have in common."""

from typing import Any, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Num, PyTree

from optax_unf.meta.inner import InnerProblem, Theta

Metrics: TypeAlias = dict[str, Num[Array, ""]]


@runtime_checkable
class Estimator(Protocol):
    """Estimates the gradient of the outer loss with respect to theta from inner runs.

    Estimators are frozen dataclasses of plain numbers and strings. Those that work in truncations continue their runs
    from one estimate to the next.
    """

    def check(self, horizon: int) -> None:
        """Raises ValueError if inner runs of this length do not suit the estimator."""
        ...

    def inner_steps(self, horizon: int) -> int:
        """Inner steps of one estimate, of all its runs together."""
        ...

    def init(self, problem: InnerProblem, horizon: int, theta: Theta, key: Array) -> Any:
        """The state before the first estimate.

        Runs start staggered: the first run of each ends early, at a random multiple of the truncation.
        """
        ...

    def estimate(
        self, problem: InnerProblem, horizon: int, theta: Theta, state: Any, key: Array
    ) -> tuple[Theta, Any, Metrics]:
        """A gradient estimate, the state for the next one, and `{"loss", "diverged"}`.

        `loss` is the mean over runs and inner steps, `diverged` the number of runs (or pairs) that were not finite.
        """
        ...


def check_truncation(truncation: int, horizon: int, skip: int = 0) -> None:
    """Raises ValueError unless whole truncations make up the horizon, or what is left of it after `skip` steps."""
    left = horizon - skip
    if not 1 <= truncation <= left or left % truncation:
        raise ValueError(
            f"The truncation must be between 1 and the horizon and divide it, but the truncation is {truncation} and "
            f"the horizon {left}{f' ({horizon} without {skip} that are skipped)' if skip else ''}. Shorten the "
            f"truncation, or lengthen the horizon to a multiple of it."
        )


def start_runs(problem: InnerProblem, theta: Theta, key: Array, count: int) -> Any:
    """Fresh inner runs, `[count, ...]`."""
    return jax.vmap(lambda key: problem.start(theta, key))(jax.random.split(key, count))


def staggered(key: Array, count: int, truncation: int, horizon: int) -> Int[Array, " count"]:
    """Inner steps until each of the first runs ends: random multiples of the truncation, up to the horizon."""
    return truncation * jax.random.randint(key, (count,), 1, horizon // truncation + 1)


def select(mask: Bool[Array, " count"], a: PyTree, b: PyTree) -> PyTree:
    """Along the leading axis, the entries of `a` where the mask is true, and those of `b` elsewhere."""
    return jax.tree.map(lambda x, y: jnp.where(mask.reshape(-1, *[1] * (x.ndim - 1)), x, y), a, b)
