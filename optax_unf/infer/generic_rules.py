"""What each operation leaves almost surely true of its results: see `generic`."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

from optax_unf.infer import generic_arrays as arrays
from optax_unf.infer import generic_entries as entries
from optax_unf.infer.generic import UNKNOWN, Generic, constant, opaque
from optax_unf.infer.value import Value

_SAME = {
    *("copy", "copy_p", "device_put", "name", "optimization_barrier", "reshard", "sharding_constraint"),
    *("stop_gradient", "layout_constraint"),
}
# What these make of a mask of -inf is finite.
_MASKED = {"exp", "exp2", "logistic", "max", "select_n"}


def generic_of(eqn: Any, values: Sequence[Value]) -> list[Generic]:
    """A description for each result of an operation that calls no function."""
    xs = [_of(value) for value in values]
    rule = _RULES.get(eqn.primitive.name)
    if rule is None or any(_is_complex(var) for var in (*eqn.invars, *eqn.outvars)):
        out: Generic | list[Generic] = opaque(*xs)
    elif any(x.infinite for x in xs) and eqn.primitive.name not in _MASKED:
        out = opaque(*xs)
    else:
        out = rule(eqn, values, xs)
    outs = out if isinstance(out, list) else [out] * len(eqn.outvars)
    return [_fitted(x, var) for x, var in zip(outs, eqn.outvars, strict=True)]


def _of(value: Value) -> Generic:
    if value.constant is not None:
        return constant(value.constant)
    return UNKNOWN if value.generic is None else value.generic


def _fitted(x: Generic, var: Any) -> Generic:
    """One entry alone differs from all others, but may be zero; integers are finite."""
    shape = var.aval.shape
    if x.infinite and not jnp.issubdtype(var.aval.dtype, jnp.floating):
        x = dataclasses.replace(x, infinite=False)
    trivial = {axis for axis in x.distinct if shape[axis] < 2}
    return dataclasses.replace(x, distinct=x.distinct - trivial) if trivial else x


def _is_complex(var: Any) -> bool:
    dtype = getattr(var.aval, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.complexfloating)


_RULES: dict[str, Callable[[Any, Sequence[Value], list[Generic]], Generic | list[Generic]]] = {
    **dict.fromkeys(_SAME, arrays.same),
    **dict.fromkeys(entries.ANALYTIC | entries.LOGARITHMS, entries.function),
    **dict.fromkeys(("add", "add_any", "sub"), entries.add),
    **dict.fromkeys(("sqrt", "rsqrt"), entries.root),
    **dict.fromkeys(("integer_pow", "square"), entries.integer_pow),
    **dict.fromkeys(("min", "clamp"), entries.case),
    "max": entries.maximum,
    "select_n": entries.select,
    **dict.fromkeys(("reduce_sum", "reduce_prod", "reduce_max", "reduce_min"), arrays.reduce),
    **dict.fromkeys(("sort", "top_k"), arrays.permuted),
    "mul": entries.mul,
    "div": entries.div,
    "neg": entries.neg,
    "abs": entries.absolute,
    "pow": entries.power,
    "convert_element_type": entries.convert,
    "transpose": arrays.transpose,
    "broadcast_in_dim": arrays.broadcast,
    **dict.fromkeys(("reshape", "squeeze"), arrays.reshape),
    "slice": arrays.slice_,
    "split": arrays.split,
    "dynamic_slice": arrays.dynamic_slice,
    "concatenate": arrays.concatenate,
    "gather": arrays.gather,
    "rev": arrays.rev,
    "dot_general": arrays.dot,
    "conv_general_dilated": arrays.convolution,
    "cumsum": arrays.linear,
}
