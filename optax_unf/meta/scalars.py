"""The scalars of Eq. 31 at a rate of their own, beta as its logarithm.

Beta is a small number, which steps right for a network would throw about, and whose gradient is as large as beta is
small: clipping would leave nothing of the others. Alpha and gamma_0 are a logarithm and a logit already.

Trained alone, they are few enough for evolution strategies over whole runs, which are blind to no horizon.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from optax_unf.meta.inner import InnerProblem, Theta


def with_positive_beta(theta: Theta) -> Theta:
    """The same optimizer with beta above zero: the head, which is linear, bears the sign."""
    if "beta" not in theta:
        return theta
    network, sign = theta["network"], jnp.where(theta["beta"] < 0, -1.0, 1.0)
    head = jax.tree.map(lambda x: sign * x, network["head"])
    return theta | {"beta": jnp.maximum(jnp.abs(theta["beta"]), 1e-12), "network": network | {"head": head}}


def encode(theta: Theta) -> Theta:
    """Meta-weights with the logarithm of beta in its place."""
    return theta | {"beta": jnp.log(theta["beta"])} if "beta" in theta else theta


def decode(encoded: Theta) -> Theta:
    """The inverse of `encode`."""
    return encoded | {"beta": jnp.exp(encoded["beta"])} if "beta" in encoded else encoded


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
      network: `{"network": ...}`, or nothing for SGD with momentum.
    """

    problem: InnerProblem
    network: Theta

    def start(self, theta: Theta, key: Array) -> Any:
        """See `InnerProblem.start`."""
        return self.problem.start(theta | self.network, key)

    def step(self, theta: Theta, run: Any) -> tuple[Any, Float[Array, ""]]:
        """See `InnerProblem.step`."""
        return self.problem.step(theta | self.network, run)


def around(problem: InnerProblem, theta: Theta) -> tuple[Around, Theta]:
    """The problem of the scalars of these meta-weights, and the scalars."""
    network = {name: part for name, part in theta.items() if name == "network"}
    return Around(problem, network), {name: part for name, part in theta.items() if name != "network"}


def two_rates(network: optax.Schedule, scalars: optax.Schedule) -> optax.GradientTransformation:
    """Adam, with one learning rate for the network and another for the scalars."""
    return optax.partition(
        {"network": optax.adam(network), "scalars": optax.adam(scalars)},
        lambda theta: {name: "network" if name == "network" else "scalars" for name in theta},
    )
