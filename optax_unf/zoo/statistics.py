"""Statistics of weights, the baseline that has no idea of neurons."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from optax_unf._flax import linen as nn
from optax_unf.nn.predictor import MLP
from optax_unf.nn.stacked import Stacked
from optax_unf.spec.paths import leaves_by_path

_PERCENTILES = (0, 25, 50, 75, 100)


def weight_statistics(stacked: Stacked) -> Float[np.ndarray, "models statistics"]:
    """Mean, variance and five percentiles of every tensor (Unterthiner et al. 2020, arXiv:2002.11448).

    Example:
      >>> weight_statistics({"w": np.ones((4, 3, 2)), "b": np.zeros((4, 2))}).shape
      (4, 14)
    """
    columns = []
    for x in leaves_by_path(stacked).values():
        flat = np.asarray(x).reshape(len(x), -1)
        columns += [flat.mean(1), flat.var(1), *np.percentile(flat, _PERCENTILES, axis=1)]
    return np.stack(columns, axis=1).astype(np.float32)


def with_joined_gates(params: Stacked) -> Stacked:
    """The parameters of `Seq2Seq` models with the gates of a cell in one array, as most libraries store them."""

    def joined(part: Any) -> Any:
        return np.concatenate(list(part.values()), axis=-1) if isinstance(part, dict) else part

    return {cell: {kind: joined(part) for kind, part in parts.items()} for cell, parts in params.items()}


class StatNN(nn.Module):
    """A multilayer perceptron on statistics, each normalized over those that `init` gets.

    Attributes:
      outputs: how many numbers are predicted.
      width: of the layers.
      layers: how many there are, the last included.
      dropout: of the hidden units, where `apply` gets `rngs={"dropout": key}`.
    """

    outputs: int = 1
    width: int = 600
    layers: int = 6
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Float[Array, "models statistics"]) -> Float[Array, "models outputs"]:
        """Applies the predictor."""
        mean = self.variable("normalization", "mean", lambda: jnp.mean(x, 0)).value
        std = self.variable("normalization", "std", lambda: jnp.std(x, 0)).value
        x = (x - mean) / jnp.where(std > 0, std, 1.0)
        return MLP(self.width, self.layers - 1, self.outputs, self.dropout)(x)
