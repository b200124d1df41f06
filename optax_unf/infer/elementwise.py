"""Rules for operations that act on each entry by itself."""

import operator
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from optax_unf.infer.terms import Atom, Term, Uniform, is_uniform
from optax_unf.infer.unify import join
from optax_unf.infer.value import Along, Given, IndexOf, Never, Shifted, Value, index_terms, plain

_UNARY = {
    *("abs", "acos", "acosh", "asin", "asinh", "atan", "atanh", "bessel_i0e", "bessel_i1e", "bitcast_convert_type"),
    *("cbrt", "ceil", "clz", "conj", "convert_element_type", "copy", "copy_p", "cos", "cosh", "digamma", "erf"),
    *("erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "imag", "integer_pow", "is_finite", "layout_constraint"),
    *("lgamma", "log", "log1p", "logistic", "name", "neg", "not", "one_minus_square", "population_count", "pvary"),
    *("real", "reduce_precision", "reshard", "round", "rsqrt", "sharding_constraint", "sign", "sin", "sinh", "sqrt"),
    *("square", "stop_gradient", "tan", "tanh"),
}
_NARY = {
    *("add", "add_any", "and", "atan2", "clamp", "complex", "div", "eq", "eq_to", "ge", "gt", "igamma"),
    *("igamma_grad_a", "igammac", "le", "le_to", "lt", "lt_to", "max", "min", "mul", "mulhi", "ne", "nextafter", "or"),
    *("polygamma", "pow", "random_gamma", "regularized_incomplete_beta", "rem", "select_n", "shift_left"),
    *("shift_right_arithmetic", "shift_right_logical", "sub", "xor", "zeta"),
}
_KEEPS_MEANING = {
    "convert_element_type",
    "copy",
    "copy_p",
    "stop_gradient",
    "name",
}

_FOLDS: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "neg": operator.neg,
    "max": np.maximum,
    "min": np.minimum,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "eq": operator.eq,
    "ne": operator.ne,
    "and": operator.and_,
    "or": operator.or_,
    "not": np.logical_not,
    "select_n": lambda which, *cases: np.choose(np.asarray(which).astype(int), cases),
    "clamp": lambda low, x, high: np.clip(x, low, high),
    "convert_element_type": lambda x: x,
    "copy": lambda x: x,
    "stop_gradient": lambda x: x,
}


def elementwise(name: str, shape: tuple[int, ...], dtype: Any, values: tuple[Value, ...]) -> Value:
    """The value of an elementwise operation: along each axis, all operands move together.

    Operands are of the result's shape and type, but for conversions, or scalars, or of size 1 along some axes.
    """
    axes = list(joined_axes(shape, values))
    meaning = None
    if name in _KEEPS_MEANING:
        (x,) = values
        meaning = x.meaning if _counts_to(x, dtype) else None
    elif name in ("add", "sub"):
        meaning = _shifted(name, values)
    elif name in ("lt", "select_n"):
        meaning = _wrapped(name, values)
    elif name in ("eq", "ne"):
        axes = _compared(axes, values)
    constant = None
    if name in _FOLDS and all(v.constant is not None for v in values):
        constant = np.asarray(_FOLDS[name](*(v.constant for v in values))).astype(dtype)
    return Value(tuple(axes), meaning, constant)


def _counts_to(x: Value, dtype: Any) -> bool:
    """Whether a type can hold the positions that a value has: narrow integers wrap around, and short floats round."""
    largest = max((term.size for term in index_terms(x.meaning)), default=0)
    if isinstance(x.meaning, Along):
        largest = x.axes[x.meaning.axis].size
    return largest <= largest_position(dtype)


def largest_position(dtype: Any) -> int:
    """The largest integer up to which a type has all of them."""
    if jnp.issubdtype(dtype, jnp.integer):
        return int(jnp.iinfo(dtype).max)
    return 2 ** int(jnp.finfo(dtype).nmant) if jnp.issubdtype(dtype, jnp.floating) else 0


def joined_axes(shape: tuple[int, ...], values: tuple[Value, ...]) -> tuple[Term, ...]:
    """The axes of the result."""
    axes: list[Term] = []
    for axis, size in enumerate(shape):
        term: Term = Uniform(size)
        for value in values:
            if value.axes and value.axes[axis].size == size:
                term = join(term, value.axes[axis])
        axes.append(term)
    return tuple(axes)


def _shifted(name: str, values: tuple[Value, ...]) -> Shifted | Along | IndexOf | None:
    """Positions plus a constant, or minus one."""
    x, y = values
    if name == "add" and x.constant is not None:
        x, y = y, x
    if y.constant is None or not isinstance(x.meaning, Along | IndexOf):
        return None
    return Shifted(x.meaning) if np.any(y.constant) else x.meaning


def _wrapped(name: str, values: tuple[Value, ...]) -> Never | Along | IndexOf | None:
    """Indices that may be negative: `where(i < 0, i + n, i)` is i if it never is."""
    if name == "lt":
        x, zero = values
        if isinstance(x.meaning, Along | IndexOf) and zero.constant is not None and not np.any(zero.constant):
            return Never()
        plain(x)
        plain(zero)
        return None
    which, *cases = values
    first = cases[0].meaning
    if isinstance(which.meaning, Never) and isinstance(first, Along | IndexOf):
        return first
    return None


def _compared(axes: list[Term], values: tuple[Value, ...]) -> list[Term]:
    """The axes of a comparison with positions: a one-hot vector moves as its index, an identity matrix as both axes."""
    for x, y in (values, values[::-1]):
        if not isinstance(y.meaning, Along) or not x.axes:
            continue
        axis = y.meaning.axis
        if isinstance(x.meaning, Along) and x.meaning.axis != axis:
            other = x.meaning.axis
            if axes[axis].size == axes[other].size and _counts_alone(y, axis) and _counts_alone(x, other):
                axes[axis] = axes[other] = Atom(axes[axis].size)
                return axes
        if not _counts_alone(y, axis) or not is_uniform(x.axes[axis]):
            continue
        if isinstance(x.meaning, IndexOf) and x.meaning.term.size == axes[axis].size:
            axes[axis] = join(Uniform(axes[axis].size), x.meaning.term)
            return axes
        if isinstance(x.meaning, Given):
            axes[axis] = Atom(axes[axis].size, "data")
            return axes
    for value in values:
        plain(value)
    return axes


def _counts_alone(value: Value, axis: int) -> bool:
    return all(is_uniform(term) for a, term in enumerate(value.axes) if a != axis)


NAMES = frozenset((*_UNARY, *_NARY))
