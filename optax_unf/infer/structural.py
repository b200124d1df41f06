"""Rules for operations that rearrange, cut, join or reduce axes."""

import dataclasses
import itertools
from typing import Any

import numpy as np

from optax_unf.infer.elementwise import joined_axes, largest_position
from optax_unf.infer.terms import (
    Atom,
    Term,
    Uniform,
    fix,
    has_repeats,
    is_uniform,
    ordered,
    product_of,
    sum_of,
)
from optax_unf.infer.unify import cut, join, regroup
from optax_unf.infer.value import Along, Columns, Given, IndexOf, Meaning, Value, scattered

Params = dict[str, Any]


def transpose(params: Params, x: Value) -> Value:
    """Axes change places."""
    order = params["permutation"]
    axes = tuple(x.axes[axis] for axis in order)
    return _moved(x, axes, lambda axis: order.index(axis), lambda c: c.transpose(order))


def broadcast_in_dim(shape: tuple[int, ...], params: Params, x: Value) -> Value:
    """New axes, and those that grow from size 1, are uniform."""
    where = params["broadcast_dimensions"]
    axes: list[Term] = [Uniform(size) for size in shape]
    for axis, target in enumerate(where):
        if x.axes[axis].size == shape[target]:
            axes[target] = x.axes[axis]

    def constant(c: np.ndarray) -> np.ndarray:
        old = [1] * len(shape)
        for axis, target in enumerate(where):
            old[target] = c.shape[axis]
        return np.broadcast_to(c.reshape(old), shape)

    return _moved(x, tuple(axes), lambda axis: where[axis], constant)


def reshape(shape: tuple[int, ...], x: Value) -> Value:
    """Axes merge into products, and split into factors."""
    axes = tuple(regroup(x.axes, shape))
    meaning: Meaning | None = None
    if isinstance(x.meaning, Along):
        # Positions are still counted along an axis of the same size with only axes of size 1 added or taken away.
        before = [size for size in x.shape if size != 1]
        if before == [size for size in shape if size != 1] and x.shape[x.meaning.axis] != 1:
            kept = sum(size != 1 for size in x.shape[: x.meaning.axis])
            meaning = Along([axis for axis, size in enumerate(shape) if size != 1][kept])
    elif isinstance(x.meaning, Given | IndexOf):
        meaning = x.meaning
    return Value(axes, meaning, None if x.constant is None else x.constant.reshape(shape))


def squeeze(shape: tuple[int, ...], params: Params, x: Value) -> Value:
    """Axes of size 1 go."""
    kept = [axis for axis in range(len(x.axes)) if axis not in {d % len(x.axes) for d in params["dimensions"]}]
    return _moved(
        x,
        tuple(x.axes[axis] for axis in kept),
        lambda axis: kept.index(axis) if axis in kept else None,
        lambda c: c.reshape(shape),
    )


def concatenate(shape: tuple[int, ...], params: Params, *xs: Value) -> Value:
    """The axis is a sum."""
    dimension = params["dimension"]
    axes: list[Term] = []
    for axis, size in enumerate(shape):
        if axis == dimension:
            axes.append(sum_of([x.axes[axis] for x in xs]))
            continue
        term: Term = Uniform(size)
        for x in xs:
            term = join(term, x.axes[axis])
        axes.append(term)
    meaning = None
    if dimension == len(shape) - 1 and all(x.axes[dimension].size == 1 for x in xs):
        meaning = Columns(tuple(x.meaning for x in xs))
    return Value(tuple(axes), meaning)


def split(params: Params, x: Value) -> list[Value]:
    """The axis was a sum."""
    x = dataclasses.replace(x, meaning=x.meaning if isinstance(x.meaning, Given | IndexOf) else None)
    axis, sizes = params["axis"], list(map(int, params["sizes"]))
    starts = itertools.accumulate(sizes, initial=0)
    return [
        _with_axis(x, axis, cut(x.axes[axis], start, start + size)) for start, size in zip(starts, sizes, strict=False)
    ]


def stack(shape: tuple[int, ...], params: Params, *xs: Value) -> Value:
    """The new axis has a position for each array."""
    axis = params["axis"]
    rows = [Value((*x.axes[:axis], Uniform(1), *x.axes[axis:]), x.meaning) for x in xs]
    return concatenate(shape, {"dimension": axis}, *rows)


def unstack(params: Params, x: Value) -> list[Value]:
    """The positions of the axis one by one."""
    axis = params["axis"]
    rows = split({"axis": axis, "sizes": (1,) * x.axes[axis].size}, x)
    return [Value((*row.axes[:axis], *row.axes[axis + 1 :])) for row in rows]


def tile(params: Params, x: Value) -> Value:
    """The axis is a product, whose slow factor is uniform."""
    return Value(tuple(product_of([Uniform(n), term]) for n, term in zip(params["reps"], x.axes, strict=True)))


def slice_(shape: tuple[int, ...], params: Params, x: Value) -> Value:
    """A part of a sum; with a stride that divides the axis, one position of a product's fast factor."""
    out = dataclasses.replace(x, meaning=x.meaning if isinstance(x.meaning, Given | IndexOf) else None, constant=None)
    strides = params["strides"] or (1,) * len(shape)
    for axis, (start, limit, stride) in enumerate(
        zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    ):
        out = _with_axis(out, axis, part(x.axes[axis], start, limit, stride))
    if x.constant is not None:
        index = tuple(map(slice, params["start_indices"], params["limit_indices"], strides))
        out = dataclasses.replace(out, constant=x.constant[index])
    return out


def part(term: Term, start: int, limit: int, stride: int = 1) -> Term:
    """The term of `axis[start:limit:stride]`."""
    size = len(range(start, limit, stride))
    if (start, limit, stride) == (0, term.size, 1) or is_uniform(term):
        return term if size == term.size else Uniform(size)
    if stride == 1:
        return cut(term, start, limit)
    if term.size % stride == 0 and size == term.size // stride:
        outer, inner = regroup([term], [size, stride])
        fix(inner, "order")
        return outer
    return ordered(term, size=size)


def pad(shape: tuple[int, ...], params: Params, x: Value, filler: Value) -> Value:
    """A sum with uniform parts; negative padding cuts."""
    del filler
    axes: list[Term] = []
    for term, (low, high, interior), size in zip(x.axes, params["padding_config"], shape, strict=True):
        if interior:
            axes.append(ordered(term, size=size))
            continue
        kept = part(term, max(-low, 0), term.size - max(-high, 0))
        axes.append(sum_of([Uniform(max(low, 0)), kept, Uniform(max(high, 0))]))
    return Value(tuple(axes))


def reduction(params: Params, x: Value) -> Value:
    """A sum, maximum or the like does not see the order of what it reduces."""
    gone = params["axes"]
    return Value(tuple(term for axis, term in enumerate(x.axes) if axis not in gone))


def argmax(params: Params, x: Value) -> Value:
    """The position moves with the axis, as long as there are no ties."""
    (axis,) = params["axes"]
    axes = tuple(term for a, term in enumerate(x.axes) if a != axis)
    return Value(axes, _positions(x, axis, params["index_dtype"]))


def top_k(params: Params, x: Value) -> list[Value]:
    """The largest values in order do not see where they were; their positions move with the axis."""
    axis = params.get("axis", len(x.axes) - 1) % len(x.axes)
    values = _with_axis(Value(x.axes), axis, Atom(params["k"], "order"))
    return [values, Value(values.axes, _positions(x, axis, np.int32))]


def _positions(x: Value, axis: int, dtype: Any) -> IndexOf | None:
    """What the positions of the largest entries along an axis refer to."""
    if not _is_distinct(x, axis) or x.axes[axis].size > largest_position(dtype):
        fix(x.axes[axis], "order")
        return None
    return IndexOf(x.axes[axis])


def _is_distinct(x: Value, axis: int) -> bool:
    return x.generic is not None and x.generic.is_distinct(axis) and not has_repeats(x.axes[axis])


def sort(params: Params, *xs: Value) -> list[Value]:
    """Sorted values do not see where they were; what is carried along does, if keys can be equal."""
    axis = params["dimension"]
    carried = xs[params["num_keys"] :]
    term = xs[0].axes[axis]
    unique = params["num_keys"] == 1 and _is_distinct(xs[0], axis)
    if carried and not unique:
        for x in xs:
            fix(x.axes[axis], "order")
    moving = [x for number, x in enumerate(xs) if number < params["num_keys"] or x.meaning != Along(axis)]
    for x in moving:
        term = join(term, x.axes[axis])
    place = Atom(term.size, "order")
    axes = list(xs[0].axes)
    for a in range(len(axes)):
        for x in xs[1:]:
            axes[a] = axes[a] if a == axis else join(axes[a], x.axes[a])
    axes[axis] = place

    def meaning(x: Value) -> Meaning | None:
        if x.meaning == Along(axis) and unique:
            return IndexOf(term)
        return x.meaning if x.meaning == Given() else None

    return [Value(tuple(axes), meaning(x)) for x in xs]


def cumulative(params: Params, x: Value) -> Value:
    """Cumulative sums depend on the order, and what they make of equal entries is not equal."""
    axis = params["axis"]
    return Value((*x.axes[:axis], ordered(x.axes[axis]), *x.axes[axis + 1 :]))


def rev(params: Params, x: Value) -> Value:
    """Reversals depend on the order, unless all entries are equal."""
    gone = params["dimensions"]
    return Value(
        tuple(ordered(term) if axis in gone and not is_uniform(term) else term for axis, term in enumerate(x.axes))
    )


def iota(params: Params) -> Value:
    """Positions are ordered."""
    shape, dimension = tuple(params["shape"]), params["dimension"]
    axes: list[Term] = [Uniform(size) for size in shape]
    axes[dimension] = scattered((shape[dimension],), "order")[0]
    constant = np.arange(shape[0]) if len(shape) == 1 and shape[0] <= 64 else None
    counts = shape[dimension] <= largest_position(params["dtype"])
    return Value(tuple(axes), Along(dimension) if counts else None, constant=constant if counts else None)


def random(shape: tuple[int, ...], params: Params, *xs: Value) -> Value:
    """Draws are exchangeable, but those of one key are in order. Keys have no order that moves."""
    del params
    for x in xs:
        for term in x.axes:
            fix(term, "noise")
    return Value(scattered(shape, "noise"))


def random_gamma(shape: tuple[int, ...], params: Params, key: Value, a: Value) -> Value:
    """Each draw is that of its place and moves with its parameter."""
    draws = random(shape, params, key)
    return Value(joined_axes(shape, (draws, a)))


def window(shape: tuple[int, ...], params: Params, *xs: Value) -> Value:
    """Windows depend on the order along the axes where they are larger than one position."""
    ones = (1,) * len(shape)
    settings = zip(
        params["window_dimensions"],
        params.get("window_strides") or ones,
        params.get("padding") or ((0, 0),) * len(shape),
        params.get("base_dilation") or ones,
        strict=True,
    )
    axes: list[Term] = []
    for axis, (size, (width, stride, padding, dilation)) in enumerate(zip(shape, settings, strict=True)):
        terms = [x.axes[axis] for x in xs if x.axes]
        trivial = width == stride == dilation == 1 and not any(padding)
        term: Term = Uniform(size)
        for other in terms:
            if trivial:
                term = join(term, other)
            else:
                fix(other, "spatial")
        axes.append(term if trivial else Atom(size, "spatial"))
    return Value(tuple(axes))


def split_factor(term: Term, outer: int) -> tuple[Term, Term]:
    """The term as a product of two, the first of size `outer`; what has no such structure may not move."""
    first, second = regroup([term], [outer, term.size // outer])
    return first, second


def _with_axis(x: Value, axis: int, term: Term) -> Value:
    return dataclasses.replace(x, axes=(*x.axes[:axis], term, *x.axes[axis + 1 :]), constant=None)


def _moved(x: Value, axes: tuple[Term, ...], where: Any, constant: Any) -> Value:
    meaning = x.meaning
    if isinstance(meaning, Along):
        target = where(meaning.axis)
        meaning = None if target is None or axes[target].size != x.axes[meaning.axis].size else Along(target)
    elif not isinstance(meaning, Given | IndexOf):
        meaning = None
    return Value(axes, meaning, None if x.constant is None else constant(x.constant))
