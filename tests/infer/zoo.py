"""What a case of the model zoo is: a function, its parameters, and its permutation spec, derived by hand."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from optax_unf import Concat


@dataclasses.dataclass(frozen=True)
class Case:
    """A function of parameters and arguments and the truth about it.

    Attributes:
      fn: `fn(params, *args)` gives logits or a loss.
      params: the parameters.
      args: the other arguments.
      axes: the largest group with `io="fixed"`, as `make_spec` takes it.
      sizes: sizes of names that do not follow from the shapes.
    """

    fn: Callable[..., Any]
    params: Any
    args: tuple[Any, ...]
    axes: Any
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)


def same_up_to_renaming(left, right):
    """Whether two specs of the same leaves are the same group with other names, however their axes are written."""
    return _actions(left) == _actions(right)


def differing_leaves(left, right):
    """A line for each leaf on which two specs differ, their names numbered by first occurrence."""
    pairs = zip(left.leaves, right.leaves, _actions(left), _actions(right), strict=True)
    return "\n".join(f"{a.path}: {a.axes} is not {b.axes}" for a, b, left, right in pairs if left != right)


def _actions(spec):
    """For each position of each axis of each leaf, what permutes it: the numbers of names and positions in them.

    Names of size 1 and fixed parts do nothing. Positions that one permutation moves alike stand in a fixed order.
    """
    numbers = {}
    actions = []
    for leaf in spec.leaves:
        sized = iter(leaf.factors)
        axes = [_positions(axis, sized) for axis in leaf.axes]
        numbered = [
            tuple(tuple((numbers.setdefault(name, len(numbers)), i) for name, i in position) for position in axis)
            for axis in axes
        ]
        actions.append((leaf.path, leaf.shape, numbered))
    return actions


def _positions(axis, sized):
    if isinstance(axis, Concat):
        return [position for part in axis.parts for position in _positions(part, sized)]
    if isinstance(axis, tuple):
        positions = [()]
        for factor in axis:
            inner = _positions(factor, sized)
            positions = [a + b for a in positions for b in inner]
        return positions
    name, size = next(sized)
    return [((name, i),) if name is not None and size > 1 else () for i in range(size)]
