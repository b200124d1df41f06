"""The part of a spec that belongs to the leaves that are there."""

from collections.abc import Mapping

from jaxtyping import PyTree

from optax_unf.spec.pairs import of_pairs
from optax_unf.spec.paths import leaves_by_path
from optax_unf.spec.permutation_spec import PermutationSpec


def restrict(spec: PermutationSpec | PyTree | None, params: PyTree) -> PermutationSpec | PyTree | None:
    """The spec of a part of a model, from the spec of the whole model.

    Parts are what `optax.masked` and `optax.partition` pass on, with an empty `optax.MaskedNode` for each leaf that is
    left out; trees with `None` in such places; mappings without the keys.

    Args:
      spec: a `PermutationSpec`, or nested tuples of names.
      params: the leaves that are there.

    Returns:
      The spec without the leaves that `params` lacks; of a `PermutationSpec`, a leaf that is a pair in `params` becomes
      two (see `of_pairs`). What `params` has and the spec lacks is not looked for: using the spec with `params` raises
      an error for it.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_unf import make_spec
      >>> params = {"w": jnp.zeros((3, 2)), "b": jnp.zeros(3)}
      >>> spec = make_spec({"w": ("out", "in"), "b": ("out",)}, params)
      >>> restrict(spec, {"w": params["w"]}).paths
      ('w',)
    """
    if isinstance(spec, PermutationSpec):
        found = leaves_by_path(params)
        return PermutationSpec(tuple(leaf for leaf in of_pairs(spec, params).leaves if leaf.path in found))
    return _restrict_names(spec, params)


def _restrict_names(names: PyTree, params: PyTree) -> PyTree:
    # In other containers than mappings nothing can be left out without a trace; make_spec knows the traces.
    if not (isinstance(names, Mapping) and isinstance(params, Mapping)):
        return names
    found = {str(key): value for key, value in params.items()}
    return {key: _restrict_names(value, found[str(key)]) for key, value in names.items() if str(key) in found}
