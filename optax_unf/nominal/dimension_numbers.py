"""What `optax.contrib.muon` has to be told."""

from typing import Any

import jax
from jaxtyping import PyTree
from optax.contrib import MuonDimensionNumbers

from optax_unf.infer import Spec
from optax_unf.nominal.matrices import find_matrices
from optax_unf.nominal.matrix import LeafMatrices
from optax_unf.spec.paths import leaves_by_path


def muon_dimension_numbers(spec: Spec, params: PyTree, *, adam: str | None = None) -> PyTree:
    """The matrices of a spec, as `muon_weight_dimension_numbers` of `optax.contrib.muon`.

    Whole axes can be told it, and no more: of a leaf that concatenated axes cut into parts, or whose heads are a
    factor of an axis, whole axes are given, and the leaf is orthogonalized as one.

    Args:
      spec: see `find_matrices`.
      params: the parameters; only shapes are read.
      adam: a regular expression; leaves whose path it is found in are left to Adam.

    Returns:
      A tree like the parameters, of `MuonDimensionNumbers`, and None where Adam takes a leaf.

    Raises:
      ValueError, TypeError: the spec does not fit the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"kernel": jnp.zeros((3, 3, 8, 16)), "bias": jnp.zeros(16)}
      >>> muon_dimension_numbers(None, params)["kernel"]
      MuonDimensionNumbers(reduction_axis=(0, 1, 2), output_axis=(3,))
    """
    found = {leaf.path: _numbers(leaf) for leaf in find_matrices(params, spec, adam=adam)}
    return jax.tree.unflatten(jax.tree.structure(params), [found[path] for path in leaves_by_path(params)])


def _numbers(found: LeafMatrices) -> Any:
    matrix = next((matrix for matrix in found.matrices if matrix is not None), None)
    if matrix is None or None in found.matrices:
        return None
    rows, columns = (_axes(found, axes) for axes in (matrix.rows, matrix.columns))
    return None if set(rows) & set(columns) else MuonDimensionNumbers(rows, columns)


def _axes(found: LeafMatrices, factors: tuple[int, ...]) -> tuple[int, ...]:
    """The leaf's axes that have these factors of its first part."""
    owners = [axis for axis, factors in enumerate(found.groups[0]) for _ in factors]
    return tuple(dict.fromkeys(owners[k] for k in factors))
