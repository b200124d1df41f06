"""Parameters in units of their initial size."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from optax_unf._arguments import check_real, check_same_leaves, checked_state
from optax_unf._sharding import replicated
from optax_unf.infer import Spec
from optax_unf.nominal.matrices import find_matrices
from optax_unf.spec.paths import leaves_by_path

# Where all parameters are zero: about that of weights from a hundred inputs.
_UNKNOWN = 0.1
# Of biases and scales, over the root mean square of all matrices.
_VECTORS = 2.0


class InUnitsState(NamedTuple):
    """State of `in_units`.

    Attributes:
      units: the unit of each leaf, float32 [leaves].
      inner: the state of the transformation.
    """

    units: Float[Array, " leaves"]
    inner: Any


def in_units(
    inner: optax.GradientTransformation, spec: Spec = None, **options: Any
) -> optax.GradientTransformationExtraArgs:
    r"""Lets a transformation see parameters in units of their initial size.

    A leaf $x$ with the unit $u$ is $x / u$ inside, its gradient $u g$, and a step $s$ there is $u s$ outside. The unit
    of a leaf with matrices is the root mean square (RMS) of its initial entries, or where they are zero the RMS of all
    matrices; that of biases and scales is twice the RMS of all matrices. A step of 0.1 is then a change by a tenth in
    every layer, whatever its width and however the parameters are scaled.

    Args:
      inner: the transformation.
      spec: tells which arrays are matrices; see `find_matrices`.
      **options: of `find_matrices`.

    Returns:
      A transformation whose `update` requires `params` if the inner one does.

    Raises:
      TypeError: a parameter is not real floating-point.
      ValueError: the spec does not fit.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> tx = in_units(optax.scale_by_sign())
      >>> params = {"w": jnp.full((2, 2), 0.5), "b": jnp.zeros(2)}
      >>> updates, _ = tx.update(params, tx.init(params), params)
      >>> updates["w"][0]
      Array([0.5, 0.5], dtype=float32)
    """
    inner = optax.with_extra_args_support(inner)

    def init(params: optax.Params) -> InUnitsState:
        check_real(params, "parameter")
        units = replicated(_units(params, spec, options), params)
        return InUnitsState(units, inner.init(_times(params, 1 / units)))

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, InUnitsState]:
        units, inner_state = checked_state(state, InUnitsState)
        if params is not None:
            check_same_leaves(updates, params, "gradients", "parameters")
        if (count := len(jax.tree.leaves(updates))) != len(units):
            raise ValueError(f"The state is one of {len(units)} leaves, but there are {count} gradients.")
        seen = None if params is None else _times(params, 1 / units)
        steps, inner_state = inner.update(_times(updates, units), inner_state, seen, **extra)
        return _times(steps, units), InUnitsState(units, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


@functools.partial(jax.jit, inline=True)
def _times(tree: PyTree, units: Float[Array, " leaves"]) -> PyTree:
    leaves, structure = jax.tree.flatten(tree)
    return structure.unflatten([x * u.astype(jnp.result_type(x)) for x, u in zip(leaves, units, strict=True)])


def _units(params: PyTree, spec: Spec, options: dict[str, Any]) -> Float[Array, " leaves"]:
    leaves = {path: jnp.asarray(x).astype(jnp.float32) for path, x in leaves_by_path(params).items()}
    if not leaves:  # optax.tree.map_params passes a placeholder
        return jnp.zeros(0)
    found = {leaf.path for leaf in find_matrices(params, spec, **options) if any(leaf.matrices)}
    typical = _positive(_rms([x for path, x in leaves.items() if path in found or not found]), _UNKNOWN)
    own = {path: _positive(_rms([x]), typical) if path in found else _VECTORS * typical for path, x in leaves.items()}
    return jnp.stack(list(own.values()))


def _rms(arrays: list[Array]) -> Float[Array, ""]:
    squares = sum((jnp.sum(x * x) for x in arrays), start=jnp.zeros([], jnp.float32))
    return jnp.sqrt(squares / sum(x.size for x in arrays))


def _positive(x: Array, otherwise: Any) -> Array:
    return jnp.where(x > 0, x, otherwise)
