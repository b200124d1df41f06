"""What the optimizer refuses, before anything is compiled."""

from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.typing import DTypeLike
from jaxtyping import Array, PyTree

from optax_unf._dtypes import is_signed_float
from optax_unf.spec.paths import leaves_by_path, show_path
from optax_unf.spec.permutation_spec import PermutationSpec


def flatten_checked(space: PermutationSpec, tree: PyTree, what: str) -> list[Array]:
    """The leaves of a tree in the order of the spec, which must have the shapes of the spec."""
    leaves = space.flatten(tree, what)
    for leaf, x in zip(space.leaves, leaves, strict=True):
        if jnp.shape(x) != leaf.shape:
            raise ValueError(
                f"Leaf {show_path(leaf.path)} of the {what} must have shape {leaf.shape}, as in the permutation spec, "
                f"but has {jnp.shape(x)}."
            )
    return leaves


def check_real(tree: PyTree, what: str) -> None:
    """Refuses leaves that are no real floating-point arrays or numbers."""
    for path, x in leaves_by_path(tree).items():
        dtype = _dtype_of(x)
        if dtype is None:
            raise TypeError(
                f"The learned optimizer needs arrays, but the {what} {show_path(path)} is {x!r}. Leave it out, as with "
                f"equinox.filter(model, equinox.is_inexact_array)."
            )
        if jnp.issubdtype(dtype, jnp.complexfloating):
            raise TypeError(
                f"The learned optimizer needs real floating-point leaves, but the {what} {show_path(path)} is {dtype}. "
                f"Wrap the optimizer: optax.contrib.split_real_and_imaginary(optax_unf.unf(weights, spec=...)), with "
                f"the spec of the model as it is."
            )
        if not is_signed_float(dtype):
            wanted = "floating-point leaves"
            if jnp.issubdtype(dtype, jnp.floating):
                wanted += " that have either sign"
            raise TypeError(
                f"The learned optimizer needs real {wanted}, but the {what} "
                f"{show_path(path)} is {dtype}. Leave it out with optax.masked or optax.partition."
            )


def _dtype_of(x: Any) -> jnp.dtype | None:
    """The dtype of an array or number; None of anything else."""
    try:
        return None if isinstance(x, str | type) else jnp.result_type(x)
    except TypeError:
        return None


def check_factor(factor: optax.ScalarOrSchedule) -> None:
    """Refuses what is neither a number nor a schedule."""
    if not callable(factor) and _dtype_of(factor) is None:
        raise TypeError(f"factor must be a number or an optax schedule, but is {factor!r}.")


def check_total_steps(total_steps: Any) -> None:
    """Refuses what is no positive integer, where that is known before tracing."""
    if total_steps is None or isinstance(total_steps, Tracer):
        return
    is_number = not isinstance(total_steps, bool) and _dtype_of(total_steps) is not None and np.ndim(total_steps) == 0
    if not is_number or int(total_steps) != total_steps:
        raise TypeError(f"total_steps must be an integer, the updates in the whole run, but is {total_steps!r}.")
    if total_steps < 1:
        raise ValueError(f"total_steps must be positive, the updates in the whole run, but is {total_steps!r}.")


def check_same_leaves(found: PyTree, wanted: PyTree, what: str, of_what: str) -> None:
    """Refuses a tree that has other leaves than another one.

    Raises:
      ValueError: with the first leaf that one of them lacks.
    """
    if jax.tree.structure(found) == jax.tree.structure(wanted):
        return  # without paths, which take time at every step outside of jit
    have, want = (dict.fromkeys(leaves_by_path(tree)) for tree in (found, wanted))
    for path in {**want, **have}:
        if path not in have or path not in want:
            raise ValueError(
                f"The {what} must have the leaves of the {of_what}, but {'lack' if path in want else 'also have'} "
                f"{show_path(path)}."
            )


def given_params(params: PyTree | None) -> PyTree:
    """The parameters, which `update` must be called with."""
    if params is None:
        raise ValueError(
            "The learned optimizer looks at the parameters, but update was called without them. Call "
            "update(gradients, state, params)."
        )
    return params


def check_choice(name: str, found: Any, choices: Sequence[str | None]) -> None:
    """Refuses what is not one of the choices there are."""
    if found not in choices:
        *others, last = map(repr, choices)
        raise ValueError(f"{name} must be {', '.join(others)} or {last}, but is {found!r}.")


def check_is_spec(spec: Any, what: str) -> None:
    """Refuses what only stands for a spec until there are parameters, such as names and `Inferred`."""
    if not isinstance(spec, PermutationSpec):
        raise TypeError(
            f"{what} must be a PermutationSpec, but is of type {type(spec).__name__}. make_spec(names, params), "
            f"infer_spec(fn, params, *args) and Inferred(fn, *args).of(params) make one."
        )


State = TypeVar("State")


def checked_state(state: Any, kind: type[State]) -> State:
    """The state of a transformation, which must be of its own type."""
    if not isinstance(state, kind):
        raise TypeError(
            f"The state must be the {kind.__name__} that init of this transformation returns, but is a "
            f"{type(state).__name__}. Give update the state of the same optimizer; one that was restored as plain "
            f"containers must be restored into the structure of optimizer.init(params)."
        )
    return state


def check_accumulator(dtype: DTypeLike | None) -> None:
    """Refuses what is not a real floating-point type."""
    if dtype is None:
        return
    try:
        known = jnp.dtype(dtype)
    except TypeError:
        known = None
    if known is None or not is_signed_float(known):
        raise TypeError(
            f"accumulator_dtype must be real floating-point of either sign, such as 'float32', but is {dtype!r}."
        )


def check_tile_entries(entries: int | None) -> None:
    """Refuses what is not a natural number, or not known before tracing."""
    if entries is not None and not (isinstance(entries, int | np.integer) and entries >= 0):
        raise TypeError(
            f"tile_entries must be a natural number that is known before tracing, but is {entries!r}. Give "
            f"optax.inject_hyperparams(..., static_args=('tile_entries',))."
        )
