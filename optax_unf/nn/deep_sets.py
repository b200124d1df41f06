"""Deep Sets, as a layer."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from optax_unf._flax import linen as nn
from optax_unf.equivariant.deep_sets import deep_sets, with_shared
from optax_unf.equivariant.layout import Features
from optax_unf.equivariant.plan import deep_sets_plan
from optax_unf.nn.parameters import parameters


class DeepSets(nn.Module):
    """The permutation-equivariant layer of Zaheer et al. 2017 (arXiv:1703.06114, Eq. 4), per leaf.

    A linear map of each entry's channels, plus a linear map of their mean over the leaf. Its weights fit any
    weight space, and without the pooled part it is pointwise. It knows of no spec, and would pool over an axis of
    networks as over any other: apply it to many by `jax.vmap(layer.apply, (None, 0))`.

    Attributes:
      channels: number of output channels.
      pool: whether there is a pooled part.
      use_bias: whether there is a bias.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> x = {"w": jnp.ones((3, 2, 1)), "b": jnp.ones((3, 1))}
      >>> y, _ = DeepSets(channels=4).init_with_output(jax.random.key(0), x)
      >>> y["w"].shape
      (3, 2, 4)
    """

    channels: int
    pool: bool = True
    use_bias: bool = True

    @nn.compact
    def __call__(self, features: Features, shared: Float[Array, " inputs"] | None = None) -> Features:
        """Applies the layer.

        Args:
          features: a pytree of features.
          shared: further input channels with the same value at every entry: their part of the product is a bias,
            computed once.
        """
        leaves = jax.tree.leaves(features)
        if not leaves:
            return features
        constant = 0 if shared is None else len(shared)
        plan = deep_sets_plan(
            leaves[0].shape[-1], self.channels, shared=constant, pool=self.pool, use_bias=self.use_bias
        )
        params = parameters(self, plan)
        if shared is not None:
            params = with_shared(params, shared)
        return jax.tree.map(lambda x: jnp.moveaxis(deep_sets(params, jnp.moveaxis(x, -1, 0)), 0, -1), features)
