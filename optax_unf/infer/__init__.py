"""Permutation specs inferred from functions."""

from optax_unf.infer.infer_spec import infer_spec as infer_spec
from optax_unf.infer.inferred import Inferred as Inferred
from optax_unf.infer.inferred import Spec as Spec
from optax_unf.infer.inferred import resolved as resolved
from optax_unf.infer.inferred import resolved_for_part as resolved_for_part
