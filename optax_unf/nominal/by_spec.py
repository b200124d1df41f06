"""The matrices that a permutation spec tells of."""

import itertools
import re
from collections import Counter
from collections.abc import Sequence

from optax_unf.nominal.matrix import SINGLE, VECTORS, Group, LeafMatrices, Matrix, groups_of, of_sides
from optax_unf.spec.axes import Axis, Name, names_of
from optax_unf.spec.leaf import LeafSpec, Part
from optax_unf.spec.permutation_spec import PermutationSpec


def matrices_of_spec(spec: PermutationSpec, heads: bool) -> tuple[LeafMatrices, ...]:
    """What each leaf of the spec is taken for; see `find_matrices`."""
    return tuple(_Reader(spec, heads).read(leaf) for leaf in spec.leaves)


class _Reader:
    """What has to be known of the whole spec to read one leaf."""

    def __init__(self, spec: PermutationSpec, heads: bool) -> None:
        self.heads = heads
        self.layers = _layers(spec)
        rows = [self._named(leaf) for leaf in spec.leaves]
        self.stacks = _stacks(rows)
        self.pairs = _pairs([[names for names in row if not self.stacks.issuperset(names)] for row in rows])
        self.uses: Counter[Axis] = Counter(
            axis for leaf in spec.leaves for axis in leaf.axes if isinstance(axis, tuple)
        )

    def read(self, leaf: LeafSpec) -> LeafMatrices:
        if VECTORS.search(leaf.path):
            return LeafMatrices(leaf, (None,) * len(leaf.parts), "a bias, scale or position by its name")
        read = [self._part(leaf, part, groups) for part, groups in zip(leaf.parts, groups_of(leaf), strict=True)]
        return LeafMatrices(leaf, tuple(matrix for matrix, _ in read), read[0][1])

    def _named(self, leaf: LeafSpec) -> list[tuple[Name, ...]]:
        """The names of each axis that has any, from left to right."""
        return [names_of(axis) for axis in leaf.axes if names_of(axis)]

    def _part(self, leaf: LeafSpec, part: Part, groups: Sequence[Group]) -> tuple[Matrix | None, str]:
        batch: list[int] = []
        named: list[tuple[int, Group]] = []
        fixed: list[tuple[int, Group]] = []
        for index, (axis, group) in enumerate(zip(leaf.axes, groups, strict=True)):
            names = [part.factors[k][0] for k in group if part.factors[k][0] is not None]
            # Experts stand first in their own leaves, last in their router's.
            stacked = len(group) == 1 and bool(names) and not named and self.stacks.issuperset(names)
            if stacked or (index == 0 and leaf.path in self.layers):
                batch += group
            elif not names:
                fixed.append((index, group))
            else:
                # Fused gates may be a product with a fixed factor; so is the flattened input of one layer only.
                gates = [k for k in group if part.factors[k][0] is None and len(group) > 1 and self.uses[axis] > 1]
                batch += gates
                named.append((index, tuple(k for k in group if k not in gates)))
        return self._sides(leaf, part, batch, self._merged(part, named), fixed)

    def _merged(self, part: Part, named: list[tuple[int, Group]]) -> list[tuple[int, Group]]:
        """Heads and their size, where they are axes of their own, as one side."""
        merged: list[tuple[int, Group]] = []
        for index, group in named:
            last = part.factors[merged[-1][1][-1]][0] if merged else None
            if merged and (last, part.factors[group[0]][0]) in self.pairs:
                merged[-1] = (merged[-1][0], merged[-1][1] + group)
            else:
                merged.append((index, group))
        return merged

    def _sides(
        self,
        leaf: LeafSpec,
        part: Part,
        batch: list[int],
        named: list[tuple[int, Group]],
        fixed: list[tuple[int, Group]],
    ) -> tuple[Matrix | None, str]:
        if not named or len(named) + len(fixed) < 2:
            return None, "fewer than two axes of neurons or data"

        if len(named) == 1:
            ((index, side),) = named
            inner = min(fixed, key=lambda entry: abs(entry[0] - index))
            if leaf.shape[inner[0]] == 1:
                return None, "one axis of neurons only"
            sides = [_joined(fixed), side]
            sides = sides if inner[0] < index else sides[::-1]
            return self._matrix(part, batch, sides, "a permuted and a data axis")

        if len(named) > 2:
            sides = [_joined(named[:-1] + fixed), named[-1][1]]
            return self._matrix(part, batch, sides, "the last axis out, the others in")

        # Positions of a convolution go with the inputs, which stand beside them: [h, w, in, out] or [out, in, h, w].
        first, second = named
        if fixed and fixed[-1][0] > second[0]:
            sides = [first[1], _joined([second, *fixed])]
        else:
            sides = [_joined([first, *fixed]), second[1]]
        return self._matrix(part, batch, sides, "a pair of permuted axes")

    def _matrix(self, part: Part, batch: Sequence[int], sides: Sequence[Group], why: str) -> tuple[Matrix | None, str]:
        batch, kept = list(batch), []
        for side in sides:
            outer = [k for k in side if part.factors[k][0] is not None][:-1] if self.heads else []
            batch += outer
            kept.append([k for k in side if k not in outer])
        matrix = of_sides(part, batch, *kept)
        return matrix, why if matrix else SINGLE


def _joined(groups: Sequence[tuple[int, Group]]) -> Group:
    return tuple(sorted(k for _, group in groups for k in group))


def _layers(spec: PermutationSpec) -> frozenset[str]:
    """Leaves whose first axis is a fixed stack, as of scanned layers.

    `infer_spec` says so; else it shows in leaves of the same stack with one more axis only, biases or scales. Where
    the order of the second axis matters too, both may be positions of a convolution written as slices.
    """
    noted = {path for path, note in spec.notes if re.search(r"\b0\b.*order matters", note)}
    windows = {path for path, note in spec.notes if re.search(r"\b1\b.*order matters", note)}
    positions = {path for path, note in spec.notes if re.search(r"\b0\b.*positions of a convolution", note)}
    thin = {
        (leaf.shape[0], leaf.axes[1])
        for leaf in spec.leaves
        if len(leaf.axes) == 2 and not names_of(leaf.axes[0]) and (VECTORS.search(leaf.path) or leaf.path in noted)
    }
    stacked = {
        leaf.path
        for leaf in spec.leaves
        if len(leaf.axes) > 2
        and not names_of(leaf.axes[0])
        and any((leaf.shape[0], axis) in thin for axis in leaf.axes[1:])
    }
    return frozenset((stacked - positions) | (noted - windows))


def _stacks(rows: Sequence[list[tuple[Name, ...]]]) -> frozenset[Name]:
    """Names that stand first, and alone, in every leaf of three or more axes of names, as experts do."""
    tall = [row for row in rows if len(row) > 2]
    first = {row[0][0] for row in tall if len(row[0]) == 1}
    elsewhere = {name for row in tall for names in row[1:] for name in names}
    products = {name for row in rows for names in row if len(names) > 1 for name in names}
    return frozenset(first - elsewhere - products)


def _pairs(rows: Sequence[list[tuple[Name, ...]]]) -> frozenset[tuple[Name, Name]]:
    """Names of axes of which the second never stands without the first before it, as heads and their size."""
    before: dict[Name, set[Name | None]] = {}
    for row in rows:
        for previous, names in zip([(None,), *row], row, strict=False):
            before.setdefault(names[0], set()).add(previous[-1])
    tall = {(a[-1], b[0]) for row in rows if len(row) > 2 for a, b in itertools.pairwise(row)}
    return frozenset((a, b) for a, b in tall if before[b] == {a})
