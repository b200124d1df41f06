"""Permutation specs as text, for files."""

import dataclasses
import json
from typing import Any

from optax_unf.spec.axes import Axis, Concat, Fixed
from optax_unf.spec.leaf import LeafSpec
from optax_unf.spec.permutation_spec import PermutationSpec


def spec_to_json(spec: PermutationSpec | None) -> str:
    """The leaves of a spec; notes and kinds of names are not among them."""
    return json.dumps(spec and [dataclasses.asdict(leaf) for leaf in spec.leaves])


def spec_from_json(text: str) -> PermutationSpec | None:
    """The inverse of `spec_to_json`.

    Raises:
      KeyError, TypeError, ValueError: the text is no spec.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_unf import make_spec
      >>> spec = make_spec({"w": (None, "hidden")}, {"w": jnp.ones((3, 2))})
      >>> spec_from_json(spec_to_json(spec)) == spec
      True
    """
    leaves = json.loads(text)
    if leaves is None:
        return None
    return PermutationSpec(
        tuple(
            LeafSpec(
                leaf["path"],
                tuple(leaf["shape"]),
                tuple(map(_axis_from_json, leaf["axes"])),
                tuple((name, size) for name, size in leaf["factors"]),
            )
            for leaf in leaves
        )
    )


def _axis_from_json(axis: Any) -> Axis:
    # Dataclasses are objects of their fields, as `dataclasses.asdict` has them.
    if isinstance(axis, dict):
        return Fixed(axis["size"]) if "size" in axis else Concat(*map(_axis_from_json, axis["parts"]))  # type: ignore[arg-type]
    return tuple(map(_axis_from_json, axis)) if isinstance(axis, list) else axis  # type: ignore[return-value]
