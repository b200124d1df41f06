"""The scalars of Eq. 31 at a rate of their own, beta as its logarithm.

Beta is a small number, which steps right for a network would throw about, and whose gradient is as large as beta is
small: clipping would leave nothing of the others. Alpha and gamma_0 are a logarithm and a logit already.

Trained alone, they are few enough for evolution strategies over whole runs, which are blind to no horizon.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from optax_unf.meta.inner import InnerProblem
from optax_unf.optimizer.theta import Layer, Theta


def with_positive_beta(theta: Theta) -> Theta:
    """The same optimizer with beta above zero: the head, which is linear, bears the sign."""
    beta = theta.scalars.beta
    if beta is None:
        return theta
    *trunk, head = theta.network
    head = jax.tree.map(lambda x: jnp.where(beta < 0, -1.0, 1.0) * x, head)
    return Theta(theta.scalars._replace(beta=jnp.maximum(jnp.abs(beta), 1e-12)), (*trunk, head))


def encode(theta: Theta) -> Theta:
    """Meta-weights with the logarithm of beta in its place."""
    return _with_beta(theta, jnp.log)


def decode(encoded: Theta) -> Theta:
    """The inverse of `encode`."""
    return _with_beta(encoded, jnp.exp)


def _with_beta(theta: Theta, function: Callable[[Array], Array]) -> Theta:
    beta = theta.scalars.beta
    return theta if beta is None else theta.with_scalars(beta=function(beta))


class Decoding(NamedTuple):
    """An inner problem that takes encoded meta-weights.

    Attributes:
      problem: the one that takes meta-weights.
    """

    problem: InnerProblem

    def start(self, theta: Theta, key: Array) -> Any:
        """See `InnerProblem.start`."""
        return self.problem.start(decode(theta), key)

    def step(self, theta: Theta, run: Any) -> tuple[Any, Float[Array, ""]]:
        """See `InnerProblem.step`."""
        return self.problem.step(decode(theta), run)


class Around(NamedTuple):
    """An inner problem that takes the scalars alone, around a network that stays as it is.

    Attributes:
      problem: the one that takes all meta-weights.
      network: the layers of f.
    """

    problem: InnerProblem
    network: tuple[Layer, ...]

    def start(self, theta: Theta, key: Array) -> Any:
        """See `InnerProblem.start`."""
        return self.problem.start(theta._replace(network=self.network), key)

    def step(self, theta: Theta, run: Any) -> tuple[Any, Float[Array, ""]]:
        """See `InnerProblem.step`."""
        return self.problem.step(theta._replace(network=self.network), run)


def around(problem: InnerProblem, theta: Theta) -> tuple[Around, Theta]:
    """The problem of the scalars of these meta-weights, and the scalars."""
    return Around(problem, theta.network), theta._replace(network=())


def two_rates(network: optax.Schedule, scalars: optax.Schedule) -> optax.GradientTransformation:
    """Adam, with one learning rate for the network and another for the scalars."""
    return optax.partition(
        {"network": optax.adam(network), "scalars": optax.adam(scalars)},
        Theta("scalars", "network"),  # type: ignore[arg-type] (labels in place of arrays)
    )
