"""Rules for reading and writing at indices."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from optax_unf.infer.structural import part
from optax_unf.infer.terms import Term, Uniform, fix, is_uniform, ordered, sum_of
from optax_unf.infer.unify import cut, join
from optax_unf.infer.value import Columns, Given, IndexOf, Meaning, Value, index_terms, plain

Params = dict[str, Any]


def gather(shape: tuple[int, ...], params: Params, operand: Value, indices: Value) -> Value:
    """Axes that are taken whole pass; one that is indexed moves only as its index does."""
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    batch = [axis for axis in range(len(shape)) if axis not in numbers.offset_dims]
    axes: list[Term] = [Uniform(size) for size in shape]
    for axis, term in zip(batch, indices.axes[:-1], strict=True):
        axes[axis] = term
    for dim, index_axis in zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True):
        axes[batch[index_axis]] = join(axes[batch[index_axis]], operand.axes[dim])
    offsets = iter(numbers.offset_dims)
    for dim, term in enumerate(operand.axes):
        if dim in numbers.operand_batching_dims:
            continue
        whole = sizes[dim] == term.size
        if dim not in numbers.collapsed_slice_dims:
            axes[next(offsets)] = term if whole else _read(term, sizes[dim])
            if dim in numbers.start_index_map:
                for other in index_terms(_meaning_of(dim, numbers.start_index_map, indices)):
                    fix(other, "order")
        elif not whole:
            _index(term, _meaning_of(dim, numbers.start_index_map, indices))
    return Value(tuple(axes), plain(operand).meaning)


def scatter(name: str, params: Params, operand: Value, indices: Value, updates: Value) -> Value:
    """As `gather`, the other way round: zeros that are written to at indices get an axis with the order of those."""
    numbers = params["dimension_numbers"]
    operand, updates = plain(operand), plain(updates)
    batch = [axis for axis in range(len(updates.axes)) if axis not in numbers.update_window_dims]
    for axis, term in zip(batch, indices.axes[:-1], strict=True):
        joined = join(updates.axes[axis], term)
        if name == "scatter" and not params["unique_indices"]:
            fix(joined, "order")  # the last of equal indices wins
    axes = list(operand.axes)
    for dim, index_axis in zip(numbers.operand_batching_dims, numbers.scatter_indices_batching_dims, strict=True):
        axes[dim] = join(axes[dim], join(indices.axes[index_axis], updates.axes[batch[index_axis]]))
    windows = iter(numbers.update_window_dims)
    for dim, term in enumerate(operand.axes):
        if dim in numbers.operand_batching_dims:
            continue
        if dim in numbers.inserted_window_dims:
            if term.size > 1:
                axes[dim] = _index(term, _meaning_of(dim, numbers.scatter_dims_to_operand_dims, indices))
            continue
        update = updates.axes[next(windows)]
        if update.size == term.size:
            axes[dim] = join(term, update)
        else:
            fix(update, "order")
            axes[dim] = ordered(term)
    return Value(tuple(axes))


def dynamic_slice(params: Params, operand: Value, *starts: Value) -> Value:
    """A slice where the start is known; else the order matters."""
    axes: list[Term] = []
    for term, size, start in zip(operand.axes, params["slice_sizes"], starts, strict=True):
        if size == term.size:
            axes.append(term)
        elif (at := _start(start, term.size, size)) is not None:
            axes.append(part(term, at, at + size))
        elif size == 1:
            _index(term, start.meaning)
            axes.append(Uniform(1))
        else:
            plain(start)
            axes.append(_read(term, size, "data" if isinstance(start.meaning, Given) else "order"))
    return Value(tuple(axes), plain(operand).meaning)


def dynamic_update_slice(operand: Value, update: Value, *starts: Value) -> Value:
    """What is written replaces a part of a sum where the start is known; else the order matters."""
    partial = [axis for axis, term in enumerate(operand.axes) if term.size != update.axes[axis].size]
    axes = [term if axis in partial else join(term, update.axes[axis]) for axis, term in enumerate(operand.axes)]
    for axis in partial:
        term, new = operand.axes[axis], update.axes[axis]
        at = _start(starts[axis], term.size, new.size)
        if at is not None and len(partial) == 1:
            axes[axis] = sum_of([cut(term, 0, at), new, cut(term, at + new.size, term.size)])
        else:
            fix(new, "order")
            axes[axis] = ordered(term)
    return Value(tuple(axes))


def _start(start: Value, size: int, length: int) -> int | None:
    return None if start.constant is None else int(np.clip(start.constant, 0, size - length))


def _read(term: Term, size: int, reason: str = "order") -> Term:
    if is_uniform(term):
        return Uniform(size)
    return ordered(term, reason, size)


def _index(term: Term, meaning: Meaning | None) -> Term:
    """The term of an axis that is indexed by integers of this meaning."""
    if isinstance(meaning, IndexOf) and meaning.term.size == term.size:
        return join(term, meaning.term)
    for other in index_terms(meaning):
        fix(other, "order")
    reason = "data" if isinstance(meaning, Given) else "order"
    return ordered(term, reason)


def _meaning_of(dim: int, index_map: Sequence[int], indices: Value) -> Meaning | None:
    column = tuple(index_map).index(dim)
    if isinstance(indices.meaning, Columns):
        return indices.meaning.meanings[column]
    if isinstance(indices.meaning, Given) or len(index_map) == 1:
        return indices.meaning
    return None
