"""The equivariant linear layer of universal neural functionals: contract, mix, expand."""

import functools
import operator
from collections.abc import Sequence
from typing import Literal, TypeAlias

from jaxtyping import Array, Float

from optax_unf.equivariant.contract import Tensor, channels_to_positions, contract, positions_to_channels, tensors
from optax_unf.equivariant.layout import from_parts
from optax_unf.equivariant.mix import Contracted, Kernels, mix_full, mix_tied
from optax_unf.spec.permutation_spec import PermutationSpec

Coefficients: TypeAlias = Literal["full", "tied"]


def contractions_of(x: Float[Array, "channels *factors"], leaf: Tensor) -> list[Float[Array, "c ..."]]:
    """The contractions of a part of a leaf that is at hand whole."""
    return contract(positions_to_channels(x, leaf), leaf.names)


def equivariant(
    params: Kernels,
    spec: PermutationSpec,
    coefficients: Coefficients,
    contracted: Sequence[Contracted],
    channels: int,
) -> list[Float[Array, "channels ..."]]:
    """The layer on the contractions of all parts: mix, expand, and put the parts of each leaf together.

    Args:
      params: the layer's parameters.
      spec: the weight space.
      coefficients: which parameters they are.
      contracted: the contractions of each part, in the order of `tensors`.
      channels: output channels.
    """
    tied = coefficients == "tied"
    leaves = tensors(spec, fixed_as_permuted=tied)
    terms = (mix_tied if tied else mix_full)(params, leaves, contracted, channels)
    outputs = [functools.reduce(operator.add, own) for own in terms]
    parts = [channels_to_positions(y, leaf, channels) for y, leaf in zip(outputs, leaves, strict=True)]
    return from_parts(parts, spec)
