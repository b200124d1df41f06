"""Weight spaces with concatenated axes, and the same spaces with each block as a leaf of its own."""

import itertools
import math

import numpy as np
from hypothesis import strategies as st

from optax_unf import Concat, Fixed, make_spec

SIZES = {"a": 2, "b": 3, "c": 1}

ATOMS = st.one_of(st.sampled_from("abc"), st.integers(1, 2).map(Fixed))
PARTS = st.one_of(ATOMS, st.tuples(ATOMS, ATOMS))
CONCATS = st.lists(PARTS, min_size=1, max_size=3).map(lambda parts: Concat(*parts))
AXES = st.one_of(ATOMS, CONCATS, st.tuples(st.one_of(ATOMS, CONCATS), ATOMS), st.tuples(ATOMS, CONCATS))


def concat_axes(max_rank=2):
    return st.lists(AXES, max_size=max_rank).map(tuple)


def brief_concat_axes(max_rank=2):
    """Axes that `make_spec` has no shorter way to write: they have the blocks that one sees."""
    return concat_axes(max_rank).filter(lambda axes: not any(map(_can_be_shorter, axes)))


def _can_be_shorter(axis):
    items = axis.parts if isinstance(axis, Concat) else axis if isinstance(axis, tuple) else None
    if items is None:
        return False
    fixed = [isinstance(item, Fixed) for item in items]
    return len(items) == 1 or any(a and b for a, b in itertools.pairwise(fixed)) or any(map(_can_be_shorter, items))


def make_concat_space(space):
    tree = {f"leaf_{i}": axes for i, axes in enumerate(space)}
    params = {path: np.zeros(tuple(map(size_of, axes))) for path, axes in tree.items()}
    used = {name for name in SIZES if f"'{name}'" in repr(space)}
    return make_spec(tree, params, sizes={name: SIZES[name] for name in used})


def make_separate_space(space):
    """The spec with a leaf for each block, one axis for each of its factors."""
    tree = {f"leaf_{i}/block_{k}": block for i, axes in enumerate(space) for k, block in enumerate(separate_axes(axes))}
    return make_spec(tree, {path: np.zeros(tuple(map(size_of, block))) for path, block in tree.items()})


def separate_features(space, x):
    """The features of `make_separate_space` that have the entries of `x`, those of `make_concat_space`."""
    return {
        f"leaf_{i}/block_{k}": np.asarray(x[f"leaf_{i}"])[np.ix_(*entries)].reshape(
            *map(size_of, block), *x[f"leaf_{i}"].shape[len(axes) :]
        )
        for i, axes in enumerate(space)
        for k, (block, entries) in enumerate(zip(separate_axes(axes), positions(axes), strict=True))
    }


def size_of(axis):
    if isinstance(axis, Concat):
        return sum(map(size_of, axis.parts))
    if isinstance(axis, tuple):
        return math.prod(map(size_of, axis))
    return axis.size if isinstance(axis, Fixed) else SIZES[axis]


def separate_axes(axes):
    """The names and fixed parts of each block."""
    return [tuple(itertools.chain(*(atoms for atoms, _ in block))) for block in _blocks(axes)]


def positions(axes):
    """For each block, its entries along each axis of the leaf."""
    return [[entries for _, entries in block] for block in _blocks(axes)]


def _blocks(axes):
    return list(itertools.product(*map(_choices, axes)))


def _choices(axis):
    """The parts of an axis: their atoms and where they are."""
    if isinstance(axis, Concat):
        starts = itertools.accumulate(map(size_of, axis.parts), initial=0)
        return [
            (atoms, start + entries)
            for start, part in zip(starts, axis.parts, strict=False)
            for atoms, entries in _choices(part)
        ]
    if isinstance(axis, tuple):
        return [
            (
                tuple(itertools.chain(*(atoms for atoms, _ in chosen))),
                _row_major([entries for _, entries in chosen], axis),
            )
            for chosen in itertools.product(*map(_choices, axis))
        ]
    return [((axis,), np.arange(size_of(axis)))]


def _row_major(indices, factors):
    index = np.zeros(1, int)
    for entries, factor in zip(indices, factors, strict=True):
        index = (index[:, None] * size_of(factor) + entries).ravel()
    return index
