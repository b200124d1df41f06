"""Full coefficients that make the same layer as tied ones."""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float

from optax_unf.nn.contract import Tensor, tensors
from optax_unf.nn.meetings import Meeting, meetings
from optax_unf.nn.mix import untied_rows
from optax_unf.spec.permutation_spec import PermutationSpec

Kernels = Mapping[str, Float[Array, "..."]]


def untie(tied: Kernels, spec: PermutationSpec) -> dict[str, Float[Array, "..."]]:
    """Parameters of a `UNF` layer with full coefficients that computes what one with these tied ones does.

    Args:
      tied: parameters of a layer with tied coefficients.
      spec: the weight space.

    Raises:
      ValueError: the spec has fixed axes, which the two kinds of coefficients treat differently.
    """
    leaves = tensors(spec)
    if any(leaf.positions > 1 for leaf in leaves):
        raise ValueError(
            "Tied coefficients can become full ones only where no axis is fixed, but this spec has axes named None. "
            "Name them, or start from fresh weights."
        )

    def kernel(name: str) -> Array:
        # Roles that the weights were not made for have no matrix.
        return tied.get(name, jnp.zeros_like(tied["entry"]))

    full = {}
    for meeting in meetings(leaves):
        rows = [untied_rows(kernel, meeting, leaves, departure) for departure in meeting.departures]
        full["kernel" + meeting.label] = jnp.concatenate(rows)
        if not meeting.signature and "bias" in tied:
            full["bias"] = _bias(tied["bias"], meeting, leaves)
    return full


def _bias(bias: Array, meeting: Meeting, leaves: tuple[Tensor, ...]) -> Float[Array, " outputs"]:
    # Constant maps that are zero off a diagonal have no tied counterpart.
    plain = (len(expansion.blocks) == len(leaves[leaf].names) for leaf, expansion in meeting.arrivals)
    return jnp.concatenate([bias if constant else jnp.zeros_like(bias) for constant in plain])
