"""From the weights of a network to numbers that no permutation of its neurons changes."""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from optax_unf._arguments import check_choice, check_is_spec
from optax_unf._flax import linen as nn
from optax_unf.equivariant.layout import Features
from optax_unf.nn.deep_sets import DeepSets
from optax_unf.nn.pool import InvariantPool
from optax_unf.nn.sequential import nf_relu
from optax_unf.nn.stacked import Stacked, flat_stacked
from optax_unf.nn.unf import UNF
from optax_unf.spec.permutation_spec import PermutationSpec

# A pooled number that varies by less than this share of itself is not blown up to unit variance.
_LEAST_VARIATION, _TINY = 0.01, 1e-6

Layer: TypeAlias = Literal["unf", "unf-tied", "deepsets"]


class InvariantPredictor(nn.Module):
    """Predicts properties of networks from their weights, whatever the order of their neurons.

    Normalized weights go through equivariant layers with ReLU, an invariant pool, and a multilayer perceptron (Zhou,
    Finn & Harrison 2024, arXiv:2402.05232, Section 4.1). The pool takes means and mean squares, of the weights as well
    as of the last layer. Leaves and pooled numbers are normalized by their mean and standard deviation over the models
    that `init` gets, the collection `normalization` of the variables: give it the training models.

    The layer `"unf"` has coefficients of its own for each position along a fixed axis, and `infer_spec` fixes inputs
    and outputs by default. Where they are more than a few, make the spec with `io="permute"`, or use `"unf-tied"`: see
    `UNF`, which warns of millions.

    Attributes:
      spec: the permutation spec of one network.
      outputs: how many numbers are predicted.
      layer: `"unf"`, `"unf-tied"` (tied coefficients), or `"deepsets"`.
      channels: channels of each equivariant layer.
      depth: how many equivariant layers there are.
      width: of the perceptron.
      hidden_layers: hidden layers of the perceptron.
      dropout: of its hidden units, where `apply` gets `rngs={"dropout": key}`.

    Raises:
      TypeError: `spec` is no `PermutationSpec`.
      ValueError: the input has other leaves or shapes than the spec, or no axis of models.

    Example:
      >>> from optax_unf import infer_spec
      >>> from optax_unf.nn import stack_models
      >>> def apply(params, x):
      ...     return jnp.tanh(x @ params["w1"]) @ params["w2"]
      >>> def init(key):
      ...     return {"w1": jax.random.normal(key, (2, 8)), "w2": jnp.ones((8, 1))}
      >>> population = [init(key) for key in jax.random.split(jax.random.key(0), 5)]
      >>> predictor = InvariantPredictor(infer_spec(apply, population[0], jnp.zeros(2)))
      >>> variables = predictor.init(jax.random.key(1), stack_models(population))
      >>> predictor.apply(variables, stack_models(population)).shape
      (5, 1)
    """

    spec: PermutationSpec
    outputs: int = 1
    layer: Layer = "unf"
    channels: int = 16
    depth: int = 3
    width: int = 512
    hidden_layers: int = 2
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_is_spec(self.spec, "InvariantPredictor's spec")
        check_choice("InvariantPredictor's layer", self.layer, get_args(Layer))
        super().__post_init__()

    @nn.compact
    def __call__(self, stacked: Stacked) -> Float[Array, "models outputs"]:
        """Applies the predictor.

        Args:
          stacked: the networks' parameters, `[models, *shape]`; see `optax_unf.nn.stack_models`.
        """
        weights = x = jax.tree.map(lambda leaf: leaf[..., None], self._normalized(stacked))
        for _ in range(self.depth):
            x = nf_relu(self._layer()(x))
        invariants = jnp.concatenate([self._pooled(weights), self._pooled(x)], axis=1)
        standardized = self._standardized(invariants)
        return MLP(self.width, self.hidden_layers, self.outputs, self.dropout)(standardized)

    def _pooled(self, features: Features) -> Float[Array, "models invariants"]:
        """Means and mean squares."""
        pool = _over_models(InvariantPool)(self.spec)
        return jnp.concatenate([pool(features), pool(jax.tree.map(jnp.square, features))], axis=1)

    def _standardized(self, invariants: Float[Array, "models invariants"]) -> Float[Array, "models invariants"]:
        """By the models of `init`: without it, what differs from model to model is small beside what does not."""
        mean = self.variable("normalization", "pooled_mean", jnp.mean, invariants, 0).value
        std = self.variable("normalization", "pooled_std", jnp.std, invariants, 0).value
        return (invariants - mean) / (std + _LEAST_VARIATION * jnp.abs(mean) + _TINY)

    def _layer(self) -> Callable[[Features], Features]:
        if self.layer == "deepsets":
            return _over_models(DeepSets)(self.channels)
        coefficients = "tied" if self.layer == "unf-tied" else "full"
        return _over_models(UNF)(self.spec, self.channels, coefficients=coefficients)

    def _normalized(self, stacked: Stacked) -> Stacked:
        leaves = [jnp.asarray(x, jnp.float32) for x in flat_stacked(stacked, self.spec)]
        mean = self.variable("normalization", "mean", lambda: jnp.stack([jnp.mean(x) for x in leaves])).value
        std = self.variable("normalization", "std", lambda: jnp.stack([jnp.std(x) for x in leaves])).value
        # A leaf without any variation stays zero.
        scaled = [(x - m) / jnp.where(s > 0, s, 1.0) for x, m, s in zip(leaves, mean, std, strict=True)]
        return self.spec.unflatten(scaled, stacked)


class MLP(nn.Module):
    """A multilayer perceptron with ReLU.

    Attributes:
      width: of the hidden layers.
      hidden_layers: how many there are.
      outputs: width of the last layer.
      dropout: of the hidden units, where `apply` gets `rngs={"dropout": key}`.
    """

    width: int
    hidden_layers: int
    outputs: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Float[Array, "batch inputs"]) -> Float[Array, "batch outputs"]:
        """Applies the perceptron."""
        for _ in range(self.hidden_layers):
            x = nn.relu(nn.Dense(self.width)(x))
            x = nn.Dropout(self.dropout, deterministic=not self.has_rng("dropout"))(x)
        return nn.Dense(self.outputs)(x)


def _over_models(module: Any) -> Any:
    """The module applied to each model, the first axis of inputs and outputs, with the same weights."""
    return nn.vmap(module, variable_axes={"params": None}, split_rngs={"params": False})
