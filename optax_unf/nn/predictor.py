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
from optax_unf.nn.pool import pool_leaves
from optax_unf.nn.sequential import nf_relu
from optax_unf.nn.stacked import Stacked, flat_stacked
from optax_unf.nn.unf import UNF
from optax_unf.spec.paths import show_path
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

    Predictors with tied coefficients or Deep Sets fit other sizes. They fit networks with more or fewer leaves, too,
    where `groups` says which leaves play the same part, as the gates of a cell do:
    `predictor.clone(spec=other, groups=of_other)`, with the same names, has the same variables.

    Attributes:
      spec: the permutation spec of one network.
      outputs: how many numbers are predicted.
      layer: `"unf"`, `"unf-tied"` (tied coefficients), or `"deepsets"`.
      channels: channels of each equivariant layer.
      depth: how many equivariant layers there are.
      width: of the perceptron.
      hidden_layers: hidden layers of the perceptron.
      dropout: of its hidden units, where `apply` gets `rngs={"dropout": key}`.
      groups: for each leaf, in the order of the spec, the name of its group. The leaves of a group are normalized and
        pooled as one. By default each leaf is alone.

    Raises:
      TypeError: `spec` is no `PermutationSpec`.
      ValueError: `groups` has not a name for each leaf, or leaves of one group pool to different numbers of
        invariants; the input has other leaves or shapes than the spec, or no axis of models.

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
    groups: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_is_spec(self.spec, "InvariantPredictor's spec")
        check_choice("InvariantPredictor's layer", self.layer, get_args(Layer))
        if self.groups is not None:
            object.__setattr__(self, "groups", tuple(self.groups))
            _check_groups(self.groups, self.spec)
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
        """Means and mean squares of each group."""
        columns = []
        for of_entries in (features, jax.tree.map(jnp.square, features)):
            pooled = jax.vmap(lambda x: pool_leaves(x, self.spec))(of_entries)
            columns += [jnp.mean(jnp.stack([pooled[i] for i in group]), 0) for group in self._grouped()]
        return jnp.concatenate(columns, axis=1)

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
        groups = self._grouped()

        def of_groups(statistic: Callable[[Array], Array]) -> Float[Array, " groups"]:
            joined = [jnp.concatenate([leaves[i].ravel() for i in group]) for group in groups]
            return jnp.stack([statistic(x) for x in joined])

        mean = self.variable("normalization", "mean", of_groups, jnp.mean).value
        std = self.variable("normalization", "std", of_groups, jnp.std).value
        # A group without any variation stays zero.
        std = jnp.where(std > 0, std, 1.0)
        number = {i: n for n, group in enumerate(groups) for i in group}
        return self.spec.unflatten([(x - mean[number[i]]) / std[number[i]] for i, x in enumerate(leaves)], stacked)

    def _grouped(self) -> list[list[int]]:
        """The leaves of each group, groups in the order of their names."""
        if self.groups is None:
            return [[i] for i in range(len(self.spec.leaves))]
        return [[i for i, name in enumerate(self.groups) if name == group] for group in sorted(set(self.groups))]


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


def _check_groups(groups: tuple[str, ...], spec: PermutationSpec) -> None:
    if len(groups) != len(spec.leaves):
        raise ValueError(
            f"InvariantPredictor's groups must name a group for each of the spec's {len(spec.leaves)} leaves, but name "
            f"{len(groups)}."
        )
    one = {leaf.path: jax.ShapeDtypeStruct((*leaf.shape, 1), jnp.float32) for leaf in spec.leaves}
    pooled = jax.eval_shape(lambda x: pool_leaves(x, spec), one)
    first: dict[str, int] = {}
    for i, group in enumerate(groups):
        j = first.setdefault(group, i)
        if pooled[i].shape != pooled[j].shape:
            raise ValueError(
                f"The leaves of a group must pool to as many invariants, but in group {group!r} "
                f"{show_path(spec.leaves[j].path)} has {len(pooled[j])} and {show_path(spec.leaves[i].path)} "
                f"{len(pooled[i])}. Give leaves of other axes a group of their own."
            )


def _over_models(module: Any) -> Any:
    """The module applied to each model, the first axis of inputs and outputs, with the same weights."""
    return nn.vmap(module, variable_axes={"params": None}, split_rngs={"params": False})
