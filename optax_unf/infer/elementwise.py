"""Rules for operations that act on each entry by itself."""

import itertools
import operator
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from optax_unf.infer.terms import Atom, Term, Uniform, is_uniform, join
from optax_unf.infer.value import Along, Given, IndexOf, Never, Shifted, Value, plain

# Unary maps that take distinct numbers to distinct numbers.
_INJECTIVE = {
    *("acos", "acosh", "asin", "asinh", "atan", "atanh", "cbrt", "conj", "convert_element_type", "copy", "copy_p"),
    *("digamma", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "imag", "lgamma", "log", "log1p", "logistic", "neg"),
    *("optimization_barrier", "real", "reduce_precision", "rsqrt", "sinh", "sqrt", "stop_gradient", "tan", "tanh"),
}
_UNARY = {
    *("abs", "bessel_i0e", "bessel_i1e", "bitcast_convert_type", "ceil", "clz", "cos", "cosh", "device_put", "floor"),
    *("integer_pow", "is_finite", "layout_constraint", "name", "not", "one_minus_square", "population_count"),
    *("reshard", "round", "sharding_constraint", "sign", "sin", "square"),
}
_NARY = {
    *("add", "add_any", "and", "atan2", "clamp", "complex", "div", "eq", "eq_to", "ge", "gt", "igamma"),
    *("igamma_grad_a", "igammac", "le", "le_to", "lt", "lt_to", "max", "min", "mul", "mulhi", "ne", "nextafter", "or"),
    *("polygamma", "pow", "random_gamma", "regularized_incomplete_beta", "rem", "select_n", "shift_left"),
    *("shift_right_arithmetic", "shift_right_logical", "sub", "xor", "zeta"),
}
_NEVER_ZERO = {"cosh", "exp", "exp2", "logistic", "rsqrt"}
_ROUNDS = {"ceil", "floor", "round", "sign"}
_KEEPS_MEANING = {
    "convert_element_type",
    "copy",
    "copy_p",
    "stop_gradient",
    "device_put",
    "optimization_barrier",
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
    meaning, sources = None, None
    if len(values) == 1:
        (x,) = values
        meaning = x.meaning if name in _KEEPS_MEANING else None
        # A conversion to integers rounds.
        sources = x.sources if name in _INJECTIVE and jnp.issubdtype(dtype, jnp.inexact) else None
    elif name in ("add", "sub"):
        sources = _combined([v for v in values if v.sources is not None])
        meaning = _shifted(values)
    elif name in ("mul", "div"):
        factors = [v for v in values if v.constant is None or _holds_zeros(v)]
        sources = _combined(factors) if all(v.sources is not None for v in factors) else None
    elif name in ("lt", "select_n"):
        meaning = _wrapped(name, values)
    elif name in ("eq", "ne"):
        axes = _compared(axes, values)
    constant = None
    if name in _FOLDS and all(v.constant is not None for v in values):
        constant = np.asarray(_FOLDS[name](*(v.constant for v in values))).astype(dtype)
    zeros = _may_be_zero(name, dtype, values)
    return Value(tuple(axes), meaning, sources, constant, zeros)


def _may_be_zero(name: str, dtype: Any, values: tuple[Value, ...]) -> bool:
    zeros = [v.zeros or _holds_zeros(v) for v in values]
    if name in _NEVER_ZERO:
        return False
    if name in _ROUNDS or not jnp.issubdtype(dtype, jnp.inexact):
        return True
    if name in ("add", "add_any", "sub"):
        return all(zeros)
    return zeros[0] if name == "div" else any(zeros)


def _holds_zeros(value: Value) -> bool:
    return value.constant is not None and not np.all(value.constant)


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


def _combined(values: list[Value]) -> frozenset[int] | None:
    """The sources of a sum or product of such values, unless they may cancel: as a - a and a / a do."""
    for x, y in itertools.pairwise(values):
        differ = any(is_uniform(a) != is_uniform(b) for a, b in zip(x.axes, y.axes, strict=False))
        if x.sources == y.sources and not differ:
            return None
    return frozenset().union(*(v.sources or () for v in values)) if values else None


def _shifted(values: tuple[Value, ...]) -> Shifted | Along | IndexOf | None:
    x, y = sorted(values, key=lambda v: v.constant is not None)
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


NAMES = frozenset((*_INJECTIVE, *_UNARY, *_NARY))
