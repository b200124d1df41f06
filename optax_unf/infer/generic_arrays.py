"""What operations that rearrange, cut, join, reduce or multiply arrays leave almost surely true: see `generic`."""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from optax_unf.infer.generic import Generic, common_labels, either, entries_of, moved, opaque
from optax_unf.infer.generic_entries import nonlinear
from optax_unf.infer.terms import is_uniform
from optax_unf.infer.value import Value

Shape = tuple[int, ...]


# Operations that rearrange entries.


def same(eqn: Any, values: Sequence[Value], xs: list[Generic]) -> list[Generic]:
    """The same arrays."""
    return xs[: len(eqn.outvars)]


def transpose(eqn: Any, values: Sequence[Value], xs: list[Generic]) -> Generic:
    """Axes change places."""
    return moved(xs[0], {old: new for new, old in enumerate(eqn.params["permutation"])})


def broadcast(eqn: Any, values: Sequence[Value], xs: list[Generic]) -> Generic:
    """Axes that stay."""
    old, new = values[0].shape, tuple(eqn.outvars[0].aval.shape)
    where = eqn.params.get("broadcast_dimensions", range(len(old)))
    return moved(xs[0], {axis: to for axis, to in enumerate(where) if old[axis] == new[to]})


def reshape(eqn: Any, values: Sequence[Value], xs: list[Generic]) -> Generic:
    """Axes that stay, and those that one is split into."""
    (x,), old, new = xs, values[0].shape, tuple(eqn.outvars[0].aval.shape)
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


def slice_(eqn: Any, values: Sequence[Value], xs: list[Generic]) -> Generic:
    """A part along some axes."""
    starts, strides = eqn.params["start_indices"], eqn.params["strides"] or (1,) * len(values[0].axes)
    return _part(values[0].shape, tuple(eqn.outvars[0].aval.shape), xs[0], list(zip(starts, strides, strict=True)))


def _part(old: Shape, new: Shape, x: Generic, cuts: Sequence[tuple[int, int]]) -> Generic:
    """A part along some axes: from these starts, with these strides."""
    whole = {axis for axis in range(len(old)) if old[axis] == new[axis]}
    labels = {
        axis: labels if axis in whole else frozenset((*label, *cuts[axis]) for label in labels)
        for axis, labels in x.labels.items()
    }
    return dataclasses.replace(x, rows=x.rows & whole, labels=labels)


def split(eqn: Any, values: Sequence[Value], xs: list[Generic]) -> list[Generic]:
    """Parts along an axis."""
    axis, sizes = eqn.params["axis"], eqn.params["sizes"]
    old = values[0].shape
    outs = []
    for start, var in zip(itertools.accumulate(map(int, sizes), initial=0), eqn.outvars, strict=False):
        cuts = [(start if a == axis else 0, 1) for a in range(len(old))]
        outs.append(_part(old, tuple(var.aval.shape), xs[0], cuts))
    return outs


def dynamic_slice(eqn: Any, values: Sequence[Value], xs: list[Generic]) -> Generic:
    """A part that is not known."""
    old, new = values[0].shape, tuple(eqn.outvars[0].aval.shape)
    where = opaque(*xs[1:]).deps
    x = dataclasses.replace(xs[0], deps=xs[0].deps | where)
    kept = moved(x, {axis: axis for axis in range(len(old)) if old[axis] == new[axis]})
    cut = {axis for axis in range(len(old)) if old[axis] != new[axis] and x.is_distinct(axis)}
    return dataclasses.replace(kept, distinct=kept.distinct | cut)


def concatenate(eqn: Any, values: Sequence[Value], xs: list[Generic]) -> Generic:
    """What is true of all operands."""
    rank = len(tuple(eqn.outvars[0].aval.shape))
    gone = eqn.params["dimension"]
    others = [axis for axis in range(rank) if axis != gone]
    out = moved(either(*xs, rank=rank), {axis: axis for axis in others})
    return dataclasses.replace(
        out,
        rows=frozenset(axis for axis in others if all(x.has_rows([axis]) for x in xs))
        | ({gone} if any(x.has_rows([gone]) for x in xs) else set()),
        distinct=frozenset(axis for axis in others if all(x.is_distinct(axis) for x in xs)),
    )


def gather(eqn: Any, values: Sequence[Value], xs: list[Generic]) -> Generic:
    """Entries of the operand, unless others fill places."""
    fill = eqn.params["fill_value"]
    x = dataclasses.replace(xs[0], deps=opaque(*xs).deps)
    if fill is not None and not np.isnan(fill):
        return opaque(x)
    numbers, sizes, old = eqn.params["dimension_numbers"], eqn.params["slice_sizes"], values[0].shape
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    there = [axis for axis in range(len(old)) if axis not in gone]
    where = dict(zip(there, numbers.offset_dims, strict=True))
    return moved(x, {axis: to for axis, to in where.items() if sizes[axis] == old[axis]})


def rev(eqn: Any, values: Sequence[Value], xs: list[Generic]) -> Generic:
    """Positions in reverse."""
    (x,), turned = xs, eqn.params["dimensions"]
    labels = {
        axis: frozenset((*label, "rev") for label in labels) if axis in turned else labels
        for axis, labels in x.labels.items()
    }
    return dataclasses.replace(x, labels=labels)


def permuted(eqn: Any, values: Sequence[Value], xs: list[Generic]) -> list[Generic]:
    """Entries in another order; positions are such that they are not known."""
    if eqn.primitive.name == "top_k":
        return [entries_of(xs[0]), opaque(xs[0])]
    deps = opaque(*xs).deps
    return [entries_of(x, deps=deps) for x in xs]


# Operations that reduce axes.


def reduce(eqn: Any, values: Sequence[Value], xs: list[Generic]) -> Generic:
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
        degrees=x.degrees if name == "reduce_sum" else nonlinear(x),
        nonzero=x.nonzero and (name == "reduce_prod" or x.nonneg),
        varies=varies,
    )


def dot(eqn: Any, values: Sequence[Value], xs: list[Generic]) -> Generic:
    """Where an operand has entries of its own for each output, the outputs have no ties, if the other is not zero."""
    contracted, batch = eqn.params["dimension_numbers"]
    rank = len(tuple(eqn.outvars[0].aval.shape))
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


def convolution(eqn: Any, values: Sequence[Value], xs: list[Generic]) -> Generic:
    """Windows may lie in the padding."""
    x, y = xs
    return Generic(x.deps | y.deps, x.degrees * y.degrees)


def linear(eqn: Any, values: Sequence[Value], xs: list[Generic]) -> Generic:
    """Sums of entries, and zeros."""
    return Generic(opaque(*xs).deps, xs[0].degrees)
