"""From a weight space to a vector that no permutation changes."""

import itertools

import jax.numpy as jnp
from jaxtyping import Array, Float

from optax_unf._arguments import check_is_spec
from optax_unf._flax import linen as nn
from optax_unf.equivariant.contract import contract, contractions, positions_to_channels, tensors
from optax_unf.equivariant.layout import Features, channels_first, to_parts
from optax_unf.spec.permutation_spec import PermutationSpec


class InvariantPool(nn.Module):
    """All invariant linear functions of every leaf, as one vector for an ordinary network.

    They are the equivariant maps to a scalar (Zhou, Finn & Harrison 2024, arXiv:2402.05232, Algorithm 1): the mean
    over the diagonal of each valid partition of a leaf's axes, the mean over all entries first. Positions along fixed
    axes are channels: each has its own. Each part of a leaf with `Concat` axes counts as a leaf.

    Attributes:
      spec: the permutation spec of the weight space.

    Raises:
      TypeError: `spec` is no `PermutationSpec`.
      ValueError: the input has other leaves or shapes than the spec.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optax_unf import make_spec
      >>> params = {"recurrent": jnp.eye(3), "bias": jnp.ones(3)}
      >>> spec = make_spec({"recurrent": ("hidden", "hidden"), "bias": ("hidden",)}, params)
      >>> x = jax.tree.map(lambda leaf: leaf[..., None], params)
      >>> InvariantPool(spec).apply({}, x)  # the bias, the whole matrix, its diagonal
      Array([1.        , 0.33333334, 1.        ], dtype=float32)
    """

    spec: PermutationSpec

    def __post_init__(self) -> None:
        check_is_spec(self.spec, "InvariantPool's spec")
        super().__post_init__()

    def __call__(self, features: Features) -> Float[Array, " invariants"]:
        """Applies the pool.

        Args:
          features: a pytree of features.

        Returns:
          For each leaf in the order of the spec and each valid partition of its axes, the channels of each position;
          in the widest dtype of the leaves.
        """
        pooled = pool_leaves(features, self.spec)
        return jnp.concatenate(pooled) if pooled else jnp.zeros(0)


def pool_leaves(features: Features, spec: PermutationSpec) -> list[Float[Array, " invariants"]]:
    """What `InvariantPool` gives, for each leaf alone."""
    xs = channels_first(features, spec)
    dtype = jnp.result_type(*xs) if xs else None
    parts = zip(tensors(spec), to_parts([x.astype(dtype) for x in xs], spec), strict=True)
    pooled = []
    for leaf in spec.leaves:
        means = []
        for part, x in itertools.islice(parts, len(leaf.parts)):
            contracted = contract(positions_to_channels(x, part), part.names)
            signatures = (signature for _, signature in contractions(part.names))
            means += [y for y, signature in zip(contracted, signatures, strict=True) if not signature]
        pooled.append(jnp.concatenate(means))
    return pooled
