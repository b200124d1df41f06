"""Theta: the numbers that meta-training finds."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Self, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

Layer: TypeAlias = Mapping[str, Float[Array, "..."]]
"""The parameters of one layer of f, by their names in `optax_unf.equivariant.plan`."""

_HEAD, _TRUNK, _NETWORK = "head", "trunk_", "network/"


class Scalars(NamedTuple):
    """The scalars of Eq. 31, float32.

    Attributes:
      log_alpha: of the step size.
      logit_gamma_0: of the decay of the nominal momentum.
      beta: the weight of f; None where f = 0.
      log_step_warmup: of the time constant of the warm-up; None where there is none.
    """

    log_alpha: Float[Array, ""]
    logit_gamma_0: Float[Array, ""]
    beta: Float[Array, ""] | None = None
    log_step_warmup: Float[Array, ""] | None = None

    @property
    def alpha(self) -> Float[Array, ""]:
        """The step size."""
        return jnp.exp(self.log_alpha)

    @property
    def gamma_0(self) -> Float[Array, ""]:
        """The decay of the nominal momentum."""
        return jax.nn.sigmoid(self.logit_gamma_0)

    def warmup(self, count: Int[ArrayLike, "..."]) -> Float[Array, "..."]:
        """What the update after `count` others is multiplied by: 1 without a warm-up."""
        if self.log_step_warmup is None:
            return jnp.float32(1.0)
        return -jnp.expm1(-(1.0 + jnp.asarray(count, jnp.float32)) / jnp.exp(self.log_step_warmup))


class Theta(NamedTuple):
    """All numbers of a learned optimizer.

    Attributes:
      scalars: those of Eq. 31.
      network: the layers of f, the head last; none where f = 0.
    """

    scalars: Scalars
    network: tuple[Layer, ...] = ()

    def with_scalars(self, **scalars: Any) -> Self:
        """The same with other scalars, by their names."""
        return self._replace(scalars=self.scalars._replace(**scalars))


def to_arrays(theta: Theta) -> dict[str, Any]:
    """The arrays by the names that they have in a file, sorted."""
    arrays = {name: x for name, x in theta.scalars._asdict().items() if x is not None}
    for number, layer in enumerate(theta.network):
        folder = _HEAD if number == len(theta.network) - 1 else f"{_TRUNK}{number}"
        arrays |= {f"{_NETWORK}{folder}/{name}": x for name, x in layer.items()}
    return dict(sorted(arrays.items()))


def from_arrays(arrays: Mapping[str, Any]) -> Theta:
    """The inverse of `to_arrays`.

    Raises:
      ValueError: a scalar is missing.
    """
    layers: dict[str, dict[str, Array]] = {}
    scalars: dict[str, Array] = {}
    for name, x in arrays.items():
        if name.startswith(_NETWORK):
            folder, name = name.removeprefix(_NETWORK).split("/", 1)
            layers.setdefault(folder, {})[name] = x
        else:
            scalars[name] = x
    names = [f"{_TRUNK}{number}" for number in range(len(layers) - 1)]
    try:
        return Theta(Scalars(**scalars), tuple(layers[name] for name in (*names, *([_HEAD] if layers else []))))
    except (KeyError, TypeError) as error:
        raise ValueError(f"The arrays of a learned optimizer are not complete: {error}.") from error
