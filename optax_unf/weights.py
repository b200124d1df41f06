"""Meta-weights: the parameters of a learned optimizer."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from optax_unf.features import ENTRY_CHANNELS, TIME_CHANNELS
from optax_unf.network import OptimizerConfig, UpdateNetwork
from optax_unf.spec import PermutationSpec


@functools.partial(jax.tree_util.register_dataclass, data_fields=["theta"], meta_fields=["config", "spec"])
@dataclasses.dataclass(frozen=True)
class MetaWeights:
    """The meta-weights of a learned optimizer: a pytree whose leaves are those of `theta`.

    Attributes:
      theta: `{"log_alpha": (), "logit_gamma_0": (), "beta": (), "network": {...}}`, all float32; `beta` and
        `network` only where f is not zero.
      config: the architecture.
      spec: the weight space that full coefficients belong to; `None` where the weights fit any.
    """

    theta: PyTree[Float[Array, "..."]]
    config: OptimizerConfig
    spec: PermutationSpec | None

    @property
    def alpha(self) -> Float[Array, ""]:
        """The step size."""
        return jnp.exp(self.theta["log_alpha"])

    @property
    def gamma_0(self) -> Float[Array, ""]:
        """The decay of the nominal momentum."""
        return jax.nn.sigmoid(self.theta["logit_gamma_0"])


def init_weights(config: OptimizerConfig, spec: PermutationSpec, key: Array) -> MetaWeights:
    """Meta-weights before any meta-training.

    Args:
      config: the architecture.
      spec: the weight space; weights that fit any space only take their ranks from it.
      key: a PRNG key.
    """
    theta: dict[str, PyTree] = {
        "log_alpha": jnp.log(jnp.float32(config.alpha)),
        "logit_gamma_0": jax.scipy.special.logit(jnp.float32(config.gamma_0)),
    }
    if config.head != "none":
        features = [jnp.zeros((ENTRY_CHANNELS, *leaf.shape)) for leaf in spec.leaves]
        variables = UpdateNetwork(config, spec).init(key, features, jnp.zeros(TIME_CHANNELS))
        theta |= {"beta": jnp.float32(config.beta), "network": variables.get("params", {})}
    return MetaWeights(theta, config, spec if config.fits_one_space else None)
