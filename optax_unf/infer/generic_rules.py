"""What each operation leaves almost surely true of its results: see `generic`."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from optax_unf.infer.generic import (
    UNKNOWN,
    Degrees,
    Generic,
    common_labels,
    constant,
    either,
    entries_of,
    moved,
    opaque,
)
from optax_unf.infer.terms import is_uniform
from optax_unf.infer.value import Value

Shape = tuple[int, ...]

# Analytic functions of a real number that are constant nowhere; those in the later sets only where it is positive.
_ODD = {"asinh", "atan", "cbrt", "erf", "expm1", "sinh", "tanh"}  # increasing, and 0 at 0
_POSITIVE = {"cosh", "exp", "exp2", "erfc", "logistic"}
_INJECTIVE = {*_ODD, "exp", "exp2", "erfc", "logistic"}
_ANALYTIC = {*_INJECTIVE, "cos", "cosh", "sin", "tan"}
_LOGARITHMS = {"log", "log1p"}
_SAME = {
    *("copy", "copy_p", "device_put", "name", "optimization_barrier", "reshard", "sharding_constraint"),
    *("stop_gradient", "layout_constraint"),
}
# Numbers with fewer digits are often equal after rounding.
_DIGITS = 20


def generic_of(eqn: Any, values: Sequence[Value]) -> list[Generic]:
    """A description for each result of an operation that calls no function."""
    xs = [_of(value) for value in values]
    rule = _RULES.get(eqn.primitive.name)
    if rule is None or any(_is_complex(var) for var in (*eqn.invars, *eqn.outvars)):
        out: Generic | list[Generic] = opaque(*xs)
    else:
        out = rule(eqn, values, xs)
    outs = out if isinstance(out, list) else [out] * len(eqn.outvars)
    return [_of_size(x, _shape(var)) for x, var in zip(outs, eqn.outvars, strict=True)]


def _of(value: Value) -> Generic:
    if value.constant is not None:
        return constant(value.constant)
    return UNKNOWN if value.generic is None else value.generic


def _of_size(x: Generic, shape: Shape) -> Generic:
    """One entry alone differs from all others, but may be zero."""
    trivial = {axis for axis in x.distinct if shape[axis] < 2}
    return dataclasses.replace(x, distinct=x.distinct - trivial) if trivial else x


def _shape(var: Any) -> Shape:
    return tuple(var.aval.shape)


def _is_complex(var: Any) -> bool:
    dtype = getattr(var.aval, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.complexfloating)


# Operations on each entry.


def _add(eqn: Any, values: Sequence[Value], xs: list[Generic]) -> Generic:
    x, y = xs
    shape = _shape(eqn.outvars[0])
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


def _mul(eqn: Any, values: Sequence[Value], xs: list[Generic]) -> Generic:
    x, y = xs
    if eqn.primitive.name == "mul" and eqn.invars[0] is eqn.invars[1]:
        return _power(x, 2)
    shape = _shape(eqn.outvars[0])
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


def _div(eqn: Any, values: Sequence[Value], xs: list[Generic]) -> Generic:
    x, y = xs
    return _mul(eqn, values, [x, _reciprocal(y)])


def _reciprocal(x: Generic) -> Generic:
    """Of what may be zero, the reciprocal may be infinite, and as equal as zeros are."""
    degrees = x.degrees.power(-1, 1, x.deps)
    return dataclasses.replace(x, degrees=degrees) if x.nonzero else Generic(x.deps, degrees)


def _neg(eqn: Any, values: Sequence[Value], xs: list[Generic]) -> Generic:
    return dataclasses.replace(xs[0], nonneg=False)


def _abs(eqn: Any, values: Sequence[Value], xs: list[Generic]) -> Generic:
    (x,) = xs
    return dataclasses.replace(x, nonneg=True, distinct=x.distinct if x.nonneg else frozenset())


def _integer_pow(eqn: Any, values: Sequence[Value], xs: list[Generic]) -> Generic:
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


def _root(eqn: Any, values: Sequence[Value], xs: list[Generic]) -> Generic:
    (x,) = xs
    inverse = -1 if eqn.primitive.name == "rsqrt" else 1
    degrees = x.degrees.power(inverse, 2, x.deps)
    return dataclasses.replace(x, degrees=degrees) if x.positive else Generic(x.deps, degrees, nonneg=x.nonneg)


def _pow(eqn: Any, values: Sequence[Value], xs: list[Generic]) -> Generic:
    x, _ = xs
    constant = values[1].constant
    if not x.positive or constant is None or constant.ndim or constant == 0:
        return opaque(*xs)
    return dataclasses.replace(x, degrees=_nonlinear(x))


def _nonlinear(x: Generic) -> Degrees:
    """The degrees of a function of the value: it has degree 0 in the leaves in which the value has."""
    others = x.degrees.unknown
    for degree, leaves in x.degrees.leaves.items():
        others |= leaves if degree else 0
    return Degrees({0: ~(x.deps & others)}, x.deps & others)


def _function(eqn: Any, values: Sequence[Value], xs: list[Generic]) -> Generic:
    (x,), name = xs, eqn.primitive.name
    if name in _LOGARITHMS and not x.positive:
        return opaque(x)
    return Generic(
        x.deps,
        _nonlinear(x),
        nonzero=name in _POSITIVE or (name in _ODD and x.nonzero),
        nonneg=name in _POSITIVE or (name in _ODD | {"log1p"} and x.nonneg),
        varies=x.varies,
        rows=x.rows if name in _ODD else frozenset(),
        distinct=x.distinct if name in _INJECTIVE | _LOGARITHMS else frozenset(),
        labels=x.labels,
    )


def _convert(eqn: Any, values: Sequence[Value], xs: list[Generic]) -> Generic:
    (x,), before, after = xs, eqn.invars[0].aval.dtype, eqn.outvars[0].aval.dtype
    if not jnp.issubdtype(after, jnp.floating):
        return opaque(x)
    digits = jnp.finfo(after).nmant
    if digits >= _DIGITS or (jnp.issubdtype(before, jnp.floating) and jnp.finfo(before).nmant <= digits):
        return x
    return Generic(x.deps, opaque(x).degrees, x.nonzero, x.nonneg, rows=x.rows)


def _extremum(eqn: Any, values: Sequence[Value], xs: list[Generic]) -> Generic:
    rank = len(_shape(eqn.outvars[0]))
    cases = xs
    if eqn.primitive.name == "select_n":
        which, cases = values[0].constant, xs[1:]
        cases = cases if which is None else [cases[int(case)] for case in np.unique(which)] or cases
    out = either(*cases, rank=rank)
    if eqn.primitive.name != "max":
        return out
    positive = any(x.positive for x in xs)
    return dataclasses.replace(out, nonzero=out.nonzero or positive, nonneg=any(x.nonneg for x in xs))


# Operations that rearrange entries.


def _same(eqn: Any, values: Sequence[Value], xs: list[Generic]) -> list[Generic]:
    return xs[: len(eqn.outvars)]


def _transpose(eqn: Any, values: Sequence[Value], xs: list[Generic]) -> Generic:
    return moved(xs[0], {old: new for new, old in enumerate(eqn.params["permutation"])})


def _broadcast(eqn: Any, values: Sequence[Value], xs: list[Generic]) -> Generic:
    old, new = values[0].shape, _shape(eqn.outvars[0])
    where = eqn.params.get("broadcast_dimensions", range(len(old)))
    return moved(xs[0], {axis: to for axis, to in enumerate(where) if old[axis] == new[to]})


def _reshape(eqn: Any, values: Sequence[Value], xs: list[Generic]) -> Generic:
    """Axes that stay, and those that one is split into."""
    (x,), old, new = xs, values[0].shape, _shape(eqn.outvars[0])
    out = entries_of(x)
    for before, after in _groups(old, new):
        if len(before) != 1:
            continue
        (axis,), sizes = before, tuple(new[a] for a in after)
        split = len(after) > 1
        for number, to in enumerate(after):
            labels = x.labels_of(axis)
            if split:
                labels = frozenset((*label, sizes, number) for label in labels)
            out = dataclasses.replace(
                out,
                rows=out.rows | ({to} if axis in x.rows and not split else set()),
                distinct=out.distinct | ({to} if axis in x.distinct else set()),
                labels={**out.labels, to: labels},
            )
    return out


def _groups(old: Shape, new: Shape) -> list[tuple[list[int], list[int]]]:
    """Axes before and after a reshape that have one size together; those of size 1 are left out."""
    if 0 in old or 0 in new:
        return []
    before, after = ([axis for axis, size in enumerate(shape) if size != 1] for shape in (old, new))
    groups = []
    while before:
        first, second = [before.pop(0)], [after.pop(0)]
        while (m := math.prod(old[a] for a in first)) != (n := math.prod(new[a] for a in second)):
            (first if m < n else second).append((before if m < n else after).pop(0))
        groups.append((first, second))
    return groups


def _slice(eqn: Any, values: Sequence[Value], xs: list[Generic]) -> Generic:
    starts, strides = eqn.params["start_indices"], eqn.params["strides"] or (1,) * len(values[0].axes)
    return _part(values[0].shape, _shape(eqn.outvars[0]), xs[0], list(zip(starts, strides, strict=True)))


def _part(old: Shape, new: Shape, x: Generic, cuts: Sequence[tuple[int, int]]) -> Generic:
    """A part along some axes: from these starts, with these strides."""
    whole = {axis for axis in range(len(old)) if old[axis] == new[axis]}
    labels = {
        axis: labels if axis in whole else frozenset((*label, *cuts[axis]) for label in labels)
        for axis, labels in x.labels.items()
    }
    return dataclasses.replace(x, rows=x.rows & whole, labels=labels)


def _split(eqn: Any, values: Sequence[Value], xs: list[Generic]) -> list[Generic]:
    axis, sizes = eqn.params["axis"], eqn.params["sizes"]
    old = values[0].shape
    outs = []
    for start, var in zip(itertools.accumulate(map(int, sizes), initial=0), eqn.outvars, strict=False):
        cuts = [(start if a == axis else 0, 1) for a in range(len(old))]
        outs.append(_part(old, _shape(var), xs[0], cuts))
    return outs


def _dynamic_slice(eqn: Any, values: Sequence[Value], xs: list[Generic]) -> Generic:
    old, new = values[0].shape, _shape(eqn.outvars[0])
    where = opaque(*xs[1:]).deps
    x = dataclasses.replace(xs[0], deps=xs[0].deps | where)
    kept = moved(x, {axis: axis for axis in range(len(old)) if old[axis] == new[axis]})
    cut = {axis for axis in range(len(old)) if old[axis] != new[axis] and x.is_distinct(axis)}
    return dataclasses.replace(kept, distinct=kept.distinct | cut)


def _concatenate(eqn: Any, values: Sequence[Value], xs: list[Generic]) -> Generic:
    rank = len(_shape(eqn.outvars[0]))
    gone = eqn.params["dimension"]
    others = [axis for axis in range(rank) if axis != gone]
    out = moved(either(*xs, rank=rank), {axis: axis for axis in others})
    return dataclasses.replace(
        out,
        rows=frozenset(axis for axis in others if all(x.has_rows([axis]) for x in xs))
        | ({gone} if any(x.has_rows([gone]) for x in xs) else set()),
        distinct=frozenset(axis for axis in others if all(x.is_distinct(axis) for x in xs)),
    )


def _gather(eqn: Any, values: Sequence[Value], xs: list[Generic]) -> Generic:
    fill = eqn.params["fill_value"]
    x = dataclasses.replace(xs[0], deps=opaque(*xs).deps)
    if fill is not None and not np.isnan(fill):
        return opaque(x)
    numbers, sizes, old = eqn.params["dimension_numbers"], eqn.params["slice_sizes"], values[0].shape
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    there = [axis for axis in range(len(old)) if axis not in gone]
    where = dict(zip(there, numbers.offset_dims, strict=True))
    return moved(x, {axis: to for axis, to in where.items() if sizes[axis] == old[axis]})


def _rev(eqn: Any, values: Sequence[Value], xs: list[Generic]) -> Generic:
    (x,), turned = xs, eqn.params["dimensions"]
    labels = {
        axis: frozenset((*label, "rev") for label in labels) if axis in turned else labels
        for axis, labels in x.labels.items()
    }
    return dataclasses.replace(x, labels=labels)


def _sorted(eqn: Any, values: Sequence[Value], xs: list[Generic]) -> list[Generic]:
    """Entries in another order; positions are such that they are not known."""
    if eqn.primitive.name == "top_k":
        return [entries_of(xs[0]), opaque(xs[0])]
    deps = opaque(*xs).deps
    return [entries_of(x, deps=deps) for x in xs]


# Operations that reduce axes.


def _reduce(eqn: Any, values: Sequence[Value], xs: list[Generic]) -> Generic:
    """A sum of functions of different variables, none of them constant, is not constant."""
    (x,), name, gone = xs, eqn.primitive.name, eqn.params["axes"]
    shape = values[0].shape
    kept = {old: new for new, old in enumerate(axis for axis in range(len(shape)) if axis not in gone)}
    long = [axis for axis in gone if shape[axis] > 1]
    out = moved(x, kept)
    if not long:
        return out if all(shape) else opaque(x)
    out = dataclasses.replace(out, distinct=frozenset(), rows=frozenset())
    if name in ("reduce_max", "reduce_min"):
        return out
    varies = x.varies
    for axis in long:
        varies &= -1 if is_uniform(values[0].axes[axis]) else x.leaves_along(axis)
    return dataclasses.replace(
        out,
        degrees=x.degrees if name == "reduce_sum" else _nonlinear(x),
        nonzero=x.nonzero and (name == "reduce_prod" or x.nonneg),
        varies=varies,
    )


def _dot(eqn: Any, values: Sequence[Value], xs: list[Generic]) -> Generic:
    """Where an operand has entries of its own for each output, the outputs have no ties, if the other is not zero."""
    contracted, batch = eqn.params["dimension_numbers"]
    rank = len(_shape(eqn.outvars[0]))
    places, start = [], len(batch[0])
    for value, gone, first in zip(values, contracted, batch, strict=True):
        free = [axis for axis in range(len(value.axes)) if axis not in (*gone, *first)]
        places.append({axis: to for to, axis in (*enumerate(first), *enumerate(free, start))})
        start += len(free)
    sides = [moved(x, where) for x, where in zip(xs, places, strict=True)]
    x, y = xs
    varies = _weighted(x, y, contracted[0], contracted[1], values[0].shape)
    varies |= _weighted(y, x, contracted[1], contracted[0], values[1].shape)
    return Generic(
        x.deps | y.deps,
        x.degrees * y.degrees,
        nonzero=_sums_positive(x, y, contracted[1]) or _sums_positive(y, x, contracted[0]),
        nonneg=x.nonneg and y.nonneg,
        varies=varies,
        labels=common_labels(rank, sides),
    )


def _sums_positive(x: Generic, y: Generic, gone: Sequence[int]) -> bool:
    return x.positive and y.nonneg and y.has_rows(gone)


def _weighted(x: Generic, y: Generic, gone: Sequence[int], other: Sequence[int], shape: Shape) -> int:
    """The leaves in which a sum of products with weights y, not all of which are zero, varies because x does."""
    if not y.has_rows(other):
        return 0
    varies = x.varies & ~y.deps
    for axis in gone:
        varies &= x.leaves_along(axis) if shape[axis] > 1 else -1
    return varies


def _convolution(eqn: Any, values: Sequence[Value], xs: list[Generic]) -> Generic:
    x, y = xs
    return Generic(x.deps | y.deps, x.degrees * y.degrees)


def _linear(eqn: Any, values: Sequence[Value], xs: list[Generic]) -> Generic:
    """Sums of entries, and zeros."""
    return Generic(opaque(*xs).deps, xs[0].degrees)


_RULES: dict[str, Callable[[Any, Sequence[Value], list[Generic]], Generic | list[Generic]]] = {
    **dict.fromkeys(_SAME, _same),
    **dict.fromkeys(_ANALYTIC | _LOGARITHMS, _function),
    **dict.fromkeys(("add", "add_any", "sub"), _add),
    **dict.fromkeys(("sqrt", "rsqrt"), _root),
    **dict.fromkeys(("integer_pow", "square"), _integer_pow),
    **dict.fromkeys(("max", "min", "select_n", "clamp"), _extremum),
    **dict.fromkeys(("reduce_sum", "reduce_prod", "reduce_max", "reduce_min"), _reduce),
    **dict.fromkeys(("sort", "top_k"), _sorted),
    "mul": _mul,
    "div": _div,
    "neg": _neg,
    "abs": _abs,
    "pow": _pow,
    "convert_element_type": _convert,
    "transpose": _transpose,
    "broadcast_in_dim": _broadcast,
    **dict.fromkeys(("reshape", "squeeze"), _reshape),
    "slice": _slice,
    "split": _split,
    "dynamic_slice": _dynamic_slice,
    "concatenate": _concatenate,
    "gather": _gather,
    "rev": _rev,
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
    "cumsum": _linear,
}
