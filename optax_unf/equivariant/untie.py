"""Full coefficients that make the same layer as tied ones."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from optax_unf.equivariant.contract import Tensor, tensors
from optax_unf.equivariant.mix import Kernels, tied_rows
from optax_unf.equivariant.signature_groups import SignatureGroup, signature_groups
from optax_unf.spec.permutation_spec import PermutationSpec


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

    full = {}
    for group in signature_groups(leaves):
        rows = [tied_rows(tied, leaves, source) for source in group.sources]
        full["kernel" + group.label] = jnp.concatenate(rows)
        if not group.signature and "bias" in tied:
            full["bias"] = _bias(tied["bias"], group, leaves)
    return full


def _bias(bias: Array, group: SignatureGroup, leaves: tuple[Tensor, ...]) -> Float[Array, " outputs"]:
    # Constant maps that are zero off a diagonal have no tied counterpart.
    plain = (len(expansion.diagonals) == len(leaves[leaf].names) for leaf, expansion in group.targets)
    return jnp.concatenate([bias if constant else jnp.zeros_like(bias) for constant in plain])
