"""Full coefficients that make the same layer as tied ones."""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float

from optax_unf.contract import Expansion, Tensor, contractions, tensors
from optax_unf.nn.meetings import Meeting, is_entry_or_mean, label_of, mean_index, meetings, role_of
from optax_unf.spec import PermutationSpec

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
    height, channels = tied["entry"].shape
    full = {}
    for meeting in meetings(leaves):
        shared = [role_of(contractions(leaves[leaf].names)[k][0]) for leaf, k in meeting.departures]
        rows = []
        for (leaf, k), role in zip(meeting.departures, shared, strict=True):
            row = []
            for target, expansion in meeting.arrivals:
                label = label_of(role, expansion)
                block = tied.get("all " + label, jnp.zeros((height, channels))) / shared.count(role)
                if target == leaf:
                    block += sum(tied[name] for name in _own_names(leaves[leaf], k, label) if name in tied)
                row.append(block)
            rows.append(jnp.concatenate(row, axis=1))
        full["kernel" + meeting.label] = jnp.concatenate(rows)
        if not meeting.signature and "bias" in tied:
            full["bias"] = _bias(tied["bias"], meeting, leaves)
    return full


def _own_names(leaf: Tensor, k: int, label: str) -> list[str]:
    """Names of the matrices from a leaf's contraction to the leaf itself."""
    if not is_entry_or_mean(label):
        return ["own " + label]
    return (["entry"] if k == 0 else []) + (["mean"] if k == mean_index(leaf) else [])


def _bias(bias: Array, meeting: Meeting, leaves: tuple[Tensor, ...]) -> Float[Array, " outputs"]:
    def is_constant(leaf: int, expansion: Expansion) -> bool:
        return len(expansion.blocks) == len(leaves[leaf].names)

    return jnp.concatenate([bias if is_constant(*arrival) else jnp.zeros_like(bias) for arrival in meeting.arrivals])
