"""The layer of universal neural functionals."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from optax_unf._flax import linen as nn
from optax_unf.equivariant.contract import tensors
from optax_unf.equivariant.layout import Features, channels_first, to_parts, to_tree
from optax_unf.equivariant.mix import Kernels
from optax_unf.equivariant.plan import full_plan, tied_plan
from optax_unf.equivariant.unf import Coefficients, contractions_of, equivariant
from optax_unf.nn.parameters import parameters
from optax_unf.spec.permutation_spec import PermutationSpec


class UNF(nn.Module):
    """The equivariant linear layer of a universal neural functional, for any permutation spec.

    With `coefficients="full"` it spans all linear equivariant maps (Zhou, Finn & Harrison 2024,
    arXiv:2402.05232, Algorithm 1 and Eq. 30), and its weights fit this spec only. With `"tied"` coefficients,
    leaves share them by role (rank, kept axes, diagonals), so that the weights fit any spec: roles that they have
    never seen contribute nothing, and fixed axes are treated as permuted. Each part of a leaf with `Concat` axes
    counts as a leaf.

    Attributes:
      spec: the permutation spec of the weight space.
      channels: number of output channels.
      coefficients: `"full"` or `"tied"`.
      use_bias: add the constant equivariant maps.

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

    @nn.compact
    def __call__(self, features: Features) -> Features:
        """Applies the layer."""
        xs = channels_first(features, self.spec)
        if not xs:
            return features
        tied = self.coefficients == "tied"
        leaves = tensors(self.spec, fixed_as_permuted=tied)
        plan = (tied_plan if tied else full_plan)(leaves, len(xs[0]), self.channels, use_bias=self.use_bias)
        params = parameters(self, plan, may_lack=tied)
        ys = _layer(params, xs, self.spec, self.coefficients, self.channels)
        return to_tree([y.astype(x.dtype) for y, x in zip(ys, xs, strict=True)], features, self.spec)


# Outside of jit one program, as when flax initializes the module: its operations one by one take ten times as long.
@functools.partial(jax.jit, static_argnames=("spec", "coefficients", "channels"), inline=True)
def _layer(
    params: Kernels,
    xs: list[Float[Array, "i ..."]],
    spec: PermutationSpec,
    coefficients: Coefficients,
    channels: int,
) -> list[Float[Array, "channels ..."]]:
    leaves = tensors(spec, fixed_as_permuted=coefficients == "tied")
    dtype = jnp.result_type(*xs)
    parts = to_parts([x.astype(dtype) for x in xs], spec)
    contracted = [contractions_of(x, leaf) for x, leaf in zip(parts, leaves, strict=True)]
    return equivariant(params, spec, coefficients, contracted, channels)
