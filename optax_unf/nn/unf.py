"""The layer of universal neural functionals."""

import functools
import warnings

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from optax_unf._arguments import check_choice, check_is_spec
from optax_unf._flax import linen as nn
from optax_unf.equivariant.contract import Tensor, tensors
from optax_unf.equivariant.layout import Features, flat_features, to_parts
from optax_unf.equivariant.mix import Kernels
from optax_unf.equivariant.plan import Plan, full_plan, tied_plan
from optax_unf.equivariant.signature_groups import signature_groups
from optax_unf.equivariant.unf import Coefficients, contractions_of, equivariant
from optax_unf.nn.parameters import parameters
from optax_unf.spec.paths import show_path
from optax_unf.spec.permutation_spec import PermutationSpec

# More parameters than a layer on weights needs: what fixed axes add beyond is probably not meant.
_MANY = 1_000_000


class UNF(nn.Module):
    """The equivariant linear layer of a universal neural functional, for any permutation spec.

    With `coefficients="full"` it spans all linear equivariant maps (Zhou, Finn & Harrison 2024,
    arXiv:2402.05232, Algorithm 1 and Eq. 30), and its weights fit this spec only. With `"tied"` coefficients,
    leaves share them by role (rank, kept axes, diagonals), so that the weights fit any spec: roles that they have
    never seen contribute nothing, and fixed axes are treated as permuted. Each part of a leaf with `Concat` axes
    counts as a leaf.

    Full coefficients are as many as there are pairs of maps, times the squares of fixed positions: every position along
    an axis named `None` is a group of channels. That is exact, but `infer_spec` fixes inputs and outputs by default,
    and 64 inputs and 10 classes make three million parameters where there would be sixteen thousand. With
    `infer_spec(..., io="permute")` positions share coefficients, and `PositionalEncoding` tells them apart.

    Attributes:
      spec: the permutation spec of the weight space.
      channels: number of output channels.
      coefficients: `"full"` or `"tied"`.
      use_bias: add the constant equivariant maps.

    Raises:
      TypeError: `spec` is no `PermutationSpec`.
      ValueError: the input has other leaves or shapes than the spec, fixed axes have too many positions, or the
        coefficients are neither.

    Warns:
      UserWarning: when it is initialized, fixed axes add more than a million parameters.

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

    def __post_init__(self) -> None:
        check_is_spec(self.spec, "UNF's spec")
        check_choice("UNF's coefficients", self.coefficients, ("full", "tied"))
        super().__post_init__()

    @nn.compact
    def __call__(self, features: Features) -> Features:
        """Applies the layer."""
        xs = flat_features(features, self.spec)
        if not xs:
            return features
        inputs, tied = xs[0].shape[-1], self.coefficients == "tied"
        leaves = tensors(self.spec, fixed_as_permuted=tied)
        plan = (tied_plan if tied else full_plan)(leaves, inputs, self.channels, use_bias=self.use_bias)
        if self.is_initializing():
            _warn_of_positions(leaves, plan, inputs, self.channels)
        params = parameters(self, plan, may_lack=tied)
        return self.spec.unflatten(_layer(params, xs, self.spec, self.coefficients, self.channels), features)


# Outside of jit one program, as when flax initializes the module: its operations one by one take ten times as long.
@functools.partial(jax.jit, static_argnames=("spec", "coefficients", "channels"), inline=True)
def _layer(
    params: Kernels,
    xs: list[Float[Array, "... i"]],
    spec: PermutationSpec,
    coefficients: Coefficients,
    channels: int,
) -> list[Float[Array, "... channels"]]:
    leaves = tensors(spec, fixed_as_permuted=coefficients == "tied")
    dtype = jnp.result_type(*xs)
    parts = to_parts([jnp.moveaxis(x, -1, 0).astype(dtype) for x in xs], spec)
    contracted = [contractions_of(x, leaf) for x, leaf in zip(parts, leaves, strict=True)]
    ys = equivariant(params, spec, coefficients, contracted, channels)
    return [jnp.moveaxis(y, 0, -1).astype(x.dtype) for y, x in zip(ys, xs, strict=True)]


def _warn_of_positions(leaves: tuple[Tensor, ...], plan: Plan, inputs: int, channels: int) -> None:
    """Warns of parameters that are many because each fixed position is a group of channels."""
    number = sum(std.size for std in plan.values())
    elsewhere = inputs * channels * sum(len(group.sources) * len(group.targets) for group in signature_groups(leaves))
    if number - elsewhere > _MANY:
        widest = max(leaves, key=lambda leaf: leaf.positions)
        warnings.warn(
            f"This UNF layer has {number:,} parameters, most of them because axes are fixed (named None): each of the "
            f"{widest.positions} positions of leaf {show_path(widest.path)}, for one, has coefficients of its own. "
            f"Name the axes, as infer_spec(..., io='permute') does, so that positions share coefficients; "
            f"optax_unf.nn.PositionalEncoding tells them apart where their order matters. Or use "
            f"coefficients='tied'.",
            stacklevel=2,
        )
