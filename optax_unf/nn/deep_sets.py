"""Deep Sets: each leaf is a set of entries."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from optax_unf.nn.layout import ChannelAxis, Features
from optax_unf.nn.product import product


class DeepSets(nn.Module):
    """The permutation-equivariant layer of Zaheer et al. 2017 (arXiv:1703.06114, Eq. 4), per leaf.

    A linear map of each entry's channels, plus a linear map of their mean over the leaf. Its weights fit any
    weight space, and without the pooled part it is pointwise.

    Attributes:
      channels: number of output channels.
      pool: whether there is a pooled part.
      use_bias: whether there is a bias.
      channel_axis: -1 for leaves `[*shape, channels]`, 0 for `[channels, *shape]`, which is faster on CPUs.

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
    channel_axis: ChannelAxis = -1

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
        inputs = leaves[0].shape[self.channel_axis]
        share = 0.5 if self.pool else 1.0
        init = nn.initializers.variance_scaling(share, "fan_in", "normal")
        rows = inputs + (0 if shared is None else shared.shape[0])
        kernel = self.param("kernel", init, (rows, self.channels))
        pooled = self.param("pooled", init, (inputs, self.channels)) if self.pool else None
        bias = self.param("bias", nn.initializers.zeros, (self.channels,)) if self.use_bias else None
        if shared is not None:
            offset = shared @ kernel[inputs:]
            kernel, bias = kernel[:inputs], offset if bias is None else offset + bias

        def entry(x: Array) -> Array:
            y = _product(kernel, x, self.channel_axis)
            if pooled is not None:
                y += _product(pooled, _mean(x, self.channel_axis), self.channel_axis)
            if bias is not None:
                y += (bias if self.channel_axis == -1 else bias.reshape(-1, *(1 for _ in x.shape[1:]))).astype(y.dtype)
            return y

        return jax.tree.map(entry, features)


def _product(kernel: Float[Array, "i o"], x: Float[Array, "..."], channel_axis: ChannelAxis) -> Array:
    if channel_axis == 0:
        return product(kernel, x)
    return jnp.einsum("io,...i->...o", kernel.astype(x.dtype), x)


def _mean(x: Array, channel_axis: ChannelAxis) -> Array:
    axes = tuple(axis for axis in range(x.ndim) if axis != channel_axis % x.ndim)
    # A mean over nothing is 0: an empty leaf stays empty and finite.
    return jnp.sum(x, axes, keepdims=True) / max(math.prod(x.shape[axis] for axis in axes), 1)
