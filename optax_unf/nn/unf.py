"""The equivariant linear layer of universal neural functionals: contract, mix, expand."""

import functools
import operator
from typing import Literal, TypeAlias

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from optax_unf.nn.contract import channels_to_positions, contract, positions_to_channels, tensors
from optax_unf.nn.layout import ChannelAxis, Features, channels_first, from_blocks, to_blocks, to_tree
from optax_unf.nn.mix import mix_full, mix_tied, normal
from optax_unf.spec.permutation_spec import PermutationSpec

Coefficients: TypeAlias = Literal["full", "tied"]


class UNF(nn.Module):
    """The equivariant linear layer of a universal neural functional, for any permutation spec.

    With `coefficients="full"` it spans all linear equivariant maps (Zhou, Finn & Harrison 2024,
    arXiv:2402.05232, Algorithm 1 and Eq. 30), and its weights fit this spec only. With `"tied"` coefficients,
    leaves share them by role (rank, kept axes, diagonals), so that the weights fit any spec: roles that they have
    never seen contribute nothing, and fixed axes are treated as permuted. Each block of a leaf with `Concat` axes
    counts as a leaf.

    Attributes:
      spec: the permutation spec of the weight space.
      channels: number of output channels.
      coefficients: `"full"` or `"tied"`.
      use_bias: add the constant equivariant maps.
      channel_axis: -1 for leaves `[*shape, channels]`, 0 for `[channels, *shape]`, which is faster on CPUs.

    Raises:
      ValueError: the input has other leaves or shapes than the spec.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optax_unf import make_spec
      >>> params = {"w": jnp.ones((3, 2)), "b": jnp.ones(3)}
      >>> spec = make_spec({"w": ("out", "in"), "b": ("out",)}, params)
      >>> x = jax.tree.map(lambda leaf: leaf[..., None], params)
      >>> y, _ = UNF(spec, channels=4).init_with_output(jax.random.key(0), x)
      >>> y["w"].shape
      (3, 2, 4)
    """

    spec: PermutationSpec
    channels: int
    coefficients: Coefficients = "full"
    use_bias: bool = True
    channel_axis: ChannelAxis = -1

    @nn.compact
    def __call__(self, features: Features) -> Features:
        """Applies the layer."""
        xs = channels_first(features, self.spec, self.channel_axis)
        if not xs:
            return features
        leaves = tensors(self.spec, fixed_as_permuted=self.coefficients == "tied")
        dtype = jnp.result_type(*xs)
        blocks = to_blocks([x.astype(dtype) for x in xs], self.spec)
        inputs = [positions_to_channels(x, leaf) for x, leaf in zip(blocks, leaves, strict=True)]
        contracted = [contract(x, leaf.names) for x, leaf in zip(inputs, leaves, strict=True)]
        mix = mix_tied if self.coefficients == "tied" else mix_full
        terms = mix(self._matrix, leaves, contracted, self.channels, self.use_bias)
        outputs = [functools.reduce(operator.add, arrived) for arrived in terms]
        blocks = [channels_to_positions(y, leaf, self.channels) for y, leaf in zip(outputs, leaves, strict=True)]
        ys = [y.astype(x.dtype) for y, x in zip(from_blocks(blocks, self.spec), xs, strict=True)]
        return to_tree(ys, features, self.spec, self.channel_axis)

    def _matrix(self, name: str, std: np.ndarray) -> Float[Array, "..."]:
        """A parameter by name; matrices of tied coefficients recur, or have no counterpart in the weights."""
        if self.has_variable("params", name):
            return self.get_variable("params", name)
        if self.is_initializing() or self.coefficients == "full":
            return self.param(name, normal(std))
        return jnp.zeros(std.shape)
