"""What operations on each entry leave almost surely true: see `generic`."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from optax_unf.infer.generic import Degrees, Generic, common_labels, either, opaque
from optax_unf.infer.terms import is_uniform
from optax_unf.infer.value import Value

# Analytic functions of a real number that are constant nowhere; those in the later sets only where it is positive.
_ODD = {"asinh", "atan", "cbrt", "erf", "expm1", "sinh", "tanh"}  # increasing, and 0 at 0
_POSITIVE = {"cosh", "exp", "exp2", "erfc", "logistic"}
_INJECTIVE = {*_ODD, "exp", "exp2", "erfc", "logistic"}
ANALYTIC = {*_INJECTIVE, "cos", "cosh", "sin", "tan"}
LOGARITHMS = {"log", "log1p"}
# Numbers with fewer digits are often equal after rounding.
_DIGITS = 20


def add(eqn: Any, values: Sequence[Value], xs: list[Generic]) -> Generic:
    """Functions that cannot cancel, as those of different leaves or degrees."""
    x, y = xs
    shape = tuple(eqn.outvars[0].aval.shape)
    nonneg = x.nonneg and y.nonneg and eqn.primitive.name != "sub"
    apart = x.degrees.apart(y.degrees, x.deps | y.deps)
    varies = (x.varies & ~y.deps) | (y.varies & ~x.deps)
    for one in (x, y):
        if one.nonzero:
            varies |= apart & ~one.degrees.only(0) & ~one.degrees.unknown
    axes = range(len(shape))
    distinct = {
        axis
        for axis in axes
        if (x.is_distinct(axis) and (apart or _is_level(values[1], axis)))
        or (y.is_distinct(axis) and (apart or _is_level(values[0], axis)))
    }
    return Generic(
        x.deps | y.deps,
        x.degrees | y.degrees,
        nonzero=(bool(apart) and (x.nonzero or y.nonzero)) or (nonneg and (x.nonzero or y.nonzero)),
        nonneg=nonneg,
        varies=varies,
        rows=frozenset(axis for axis in axes if apart and (x.has_rows([axis]) or y.has_rows([axis]))),
        distinct=frozenset(distinct),
        labels=common_labels(len(shape), xs),
    )


def _is_level(value: Value, axis: int) -> bool:
    """Whether an operand has the same entry all along an axis of the result."""
    return not value.axes or value.axes[axis].size == 1 or is_uniform(value.axes[axis])


def mul(eqn: Any, values: Sequence[Value], xs: list[Generic]) -> Generic:
    """A factor that is not zero changes nothing."""
    x, y = xs
    if eqn.primitive.name == "mul" and eqn.invars[0] is eqn.invars[1]:
        return _power(x, 2)
    shape = tuple(eqn.outvars[0].aval.shape)
    axes = range(len(shape))
    varies = (x.varies & ~y.deps if y.nonzero else 0) | (y.varies & ~x.deps if x.nonzero else 0)
    distinct = {
        axis
        for axis in axes
        if (y.nonzero and x.is_distinct(axis) and _is_level(values[1], axis))
        or (x.nonzero and y.is_distinct(axis) and _is_level(values[0], axis))
    }
    rows = {a for a in axes if (y.nonzero and x.has_rows([a])) or (x.nonzero and y.has_rows([a]))}
    return Generic(
        x.deps | y.deps,
        x.degrees * y.degrees,
        nonzero=x.nonzero and y.nonzero,
        nonneg=x.nonneg and y.nonneg,
        varies=varies,
        rows=frozenset(rows),
        distinct=frozenset(distinct),
        labels=common_labels(len(shape), xs),
    )


def div(eqn: Any, values: Sequence[Value], xs: list[Generic]) -> Generic:
    """A product with the reciprocal."""
    x, y = xs
    return mul(eqn, values, [x, _reciprocal(y)])


def _reciprocal(x: Generic) -> Generic:
    """Of what may be zero, the reciprocal may be infinite, and as equal as zeros are."""
    degrees = x.degrees.power(-1, 1, x.deps)
    return dataclasses.replace(x, degrees=degrees) if x.nonzero else Generic(x.deps, degrees)


def neg(eqn: Any, values: Sequence[Value], xs: list[Generic]) -> Generic:
    """The same but for the sign."""
    return dataclasses.replace(xs[0], nonneg=False)


def absolute(eqn: Any, values: Sequence[Value], xs: list[Generic]) -> Generic:
    """Positive where the number is not zero."""
    (x,) = xs
    return dataclasses.replace(x, nonneg=True, distinct=x.distinct if x.nonneg else frozenset())


def integer_pow(eqn: Any, values: Sequence[Value], xs: list[Generic]) -> Generic:
    """A power with a whole exponent."""
    return _power(xs[0], eqn.params.get("y", 2))  # `square` has no parameter


def _power(x: Generic, power: int) -> Generic:
    if power == 0:
        return opaque(x)
    if power < 0:
        return _power(_reciprocal(x), -power)
    injective = power % 2 or x.nonneg
    degrees = x.degrees * x.degrees if power == 2 else x.degrees.power(power, 1, x.deps)
    return dataclasses.replace(
        x,
        degrees=degrees,
        nonneg=x.nonneg or power % 2 == 0,
        distinct=x.distinct if injective else frozenset(),
    )


def root(eqn: Any, values: Sequence[Value], xs: list[Generic]) -> Generic:
    """A root of what is positive."""
    (x,) = xs
    inverse = -1 if eqn.primitive.name == "rsqrt" else 1
    degrees = x.degrees.power(inverse, 2, x.deps)
    return dataclasses.replace(x, degrees=degrees) if x.positive else Generic(x.deps, degrees, nonneg=x.nonneg)


def power(eqn: Any, values: Sequence[Value], xs: list[Generic]) -> Generic:
    """A power with a known exponent, of what is positive."""
    x, _ = xs
    constant = values[1].constant
    if not x.positive or constant is None or constant.ndim or constant == 0:
        return opaque(*xs)
    return dataclasses.replace(x, degrees=nonlinear(x))


def nonlinear(x: Generic) -> Degrees:
    """The degrees of a function of the value: it has degree 0 in the leaves in which the value has."""
    others = x.degrees.unknown
    for degree, leaves in x.degrees.leaves.items():
        others |= leaves if degree else 0
    return Degrees({0: ~(x.deps & others)}, x.deps & others)


def function(eqn: Any, values: Sequence[Value], xs: list[Generic]) -> Generic:
    """An analytic function of a real number."""
    (x,), name = xs, eqn.primitive.name
    if x.infinite:
        return Generic(x.deps, nonlinear(x), nonneg=True)
    if name in LOGARITHMS and not x.positive:
        return dataclasses.replace(opaque(x), infinite=True)
    return Generic(
        x.deps,
        nonlinear(x),
        nonzero=name in _POSITIVE or (name in _ODD and x.nonzero),
        nonneg=name in _POSITIVE or (name in _ODD | {"log1p"} and x.nonneg),
        varies=x.varies,
        rows=x.rows if name in _ODD else frozenset(),
        distinct=x.distinct if name in _INJECTIVE | LOGARITHMS else frozenset(),
        labels=x.labels,
    )


def convert(eqn: Any, values: Sequence[Value], xs: list[Generic]) -> Generic:
    """Rounding makes distinct numbers equal."""
    (x,), before, after = xs, eqn.invars[0].aval.dtype, eqn.outvars[0].aval.dtype
    if not jnp.issubdtype(after, jnp.floating):
        return opaque(x)
    digits = jnp.finfo(after).nmant
    if digits >= _DIGITS or (jnp.issubdtype(before, jnp.floating) and jnp.finfo(before).nmant <= digits):
        return x
    return Generic(x.deps, opaque(x).degrees, x.nonzero, x.nonneg, rows=x.rows)


def case(eqn: Any, values: Sequence[Value], xs: list[Generic]) -> Generic:
    """Each entry is that of one operand."""
    return either(*xs, rank=len(tuple(eqn.outvars[0].aval.shape)))


def select(eqn: Any, values: Sequence[Value], xs: list[Generic]) -> Generic:
    """An entry of the cases; which one it is changes only between pieces."""
    which, cases = values[0].constant, xs[1:]
    chosen = [] if which is None else [cases[int(case)] for case in np.unique(which)]
    return case(eqn, values, chosen or cases)


def maximum(eqn: Any, values: Sequence[Value], xs: list[Generic]) -> Generic:
    """One of the operands."""
    # -inf is the initial value for a maximum of no entries.
    is_least = [v.constant is not None and bool(np.all(v.constant == -np.inf)) for v in values]
    out = case(eqn, values, [x for x, least in zip(xs, is_least, strict=True) if not least] or xs)
    if out.infinite:
        return out
    return dataclasses.replace(
        out, nonzero=out.nonzero or any(x.positive for x in xs), nonneg=any(x.nonneg for x in xs)
    )
