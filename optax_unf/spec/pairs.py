"""Complex leaves, of which `optax.contrib.split_real_and_imaginary` makes pairs of real ones."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from optax_unf.spec.leaf import LeafSpec
from optax_unf.spec.paths import leaves_by_path, natural_order
from optax_unf.spec.permutation_spec import PermutationSpec

_PARTS = ("real", "imaginary")


def joined(params: PyTree) -> PyTree:
    """The parameters of the model: the type of a complex array in the place of each pair."""
    if not any(map(_is_pair, jax.tree.leaves(params, is_leaf=_is_pair))):
        return params
    return jax.tree.map(lambda x: jax.eval_shape(jax.lax.complex, *x) if _is_pair(x) else x, params, is_leaf=_is_pair)


def of_pairs(spec: PermutationSpec, params: PyTree) -> PermutationSpec:
    """The spec of parameters with pairs, from that of the model, whose leaves are complex.

    A permutation moves both halves of a complex array, so they have the same axes.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from optax_unf import make_spec
      >>> params = {"w": jnp.ones((3, 2), jnp.complex64)}
      >>> tx = optax.contrib.split_real_and_imaginary(optax.trace(0.9))
      >>> pairs = tx.init(params).inner_state.trace
      >>> [(leaf.path, leaf.axes) for leaf in of_pairs(make_spec({"w": ("out", "in")}, params), pairs).leaves]
      [('w/imaginary', ('out', 'in')), ('w/real', ('out', 'in'))]
    """
    model = joined(params)
    if model is params:
        return spec
    paired = {path for path, x in leaves_by_path(model).items() if jnp.iscomplexobj(x)}
    leaves = [half for leaf in spec.leaves for half in (_halves(leaf) if leaf.path in paired else [leaf])]
    return dataclasses.replace(spec, leaves=tuple(sorted(leaves, key=lambda leaf: natural_order(leaf.path))))


def _halves(leaf: LeafSpec) -> list[LeafSpec]:
    return [dataclasses.replace(leaf, path=f"{leaf.path}/{part}" if leaf.path else part) for part in _PARTS]


def _is_pair(node: Any) -> bool:
    # What optax calls SplitRealAndImaginaryArrays, but does not export.
    return isinstance(node, tuple) and getattr(node, "_fields", None) == _PARTS
