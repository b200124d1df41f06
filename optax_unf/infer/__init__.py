"""Permutation specs inferred from functions."""

from optax_unf.infer.infer_spec import infer_spec as infer_spec
