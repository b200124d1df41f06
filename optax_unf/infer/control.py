"""Rules for control flow: what is carried around a loop has one description at all its turns."""

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from optax_unf.infer.generic import UNKNOWN, meet, moved
from optax_unf.infer.terms import Atom, Term, Uniform, fix, is_fixed, is_same, ordered
from optax_unf.infer.unify import join
from optax_unf.infer.value import Given, Value, constant_generic, plain

Params = dict[str, Any]
Call: TypeAlias = Callable[[Any, Sequence[Value]], list[Value]]  # the outputs of a jaxpr

# An axis whose description has changed at so many turns does not move.
_MAX_CHANGES = 3
# More than any loop takes whose axes all change so often, one after the other; nothing depends on it but that it ends.
_MAX_TURNS = 100


def scan(call: Call, params: Params, *values: Value) -> list[Value]:
    """The scanned axis is ordered, unless nothing is carried."""
    if "ft_in" in params:  # from JAX 0.11 on
        consts, carried = (len(part) for part in params["ft_in"].unpack()[:2])
    else:
        consts, carried = params["num_consts"], params["num_carry"]
    length = params["length"]
    constant, carry, scanned = values[:consts], values[consts : consts + carried], values[consts + carried :]
    turn: Term = Uniform(length)
    for x in scanned:
        turn = join(turn, x.axes[0])
    if carried and length > 1:
        # Padding that is scanned comes at turns of its own, too.
        turn = ordered(turn)
    # At every turn the body sees another slice, so nothing is known about it but its axes and what is true of all.
    slices = [_slice_of(plain(x)) for x in scanned]

    def step(carry: Sequence[Value]) -> list[Value]:
        return call(params["jaxpr"], [*constant, *carry, *slices])

    carry, outs = _fixed_point(step, carry)
    return [*carry, *(_stacked(y, turn) for y in outs[carried:])]


def _slice_of(x: Value) -> Value:
    generic = constant_generic(x)
    if generic is not None:
        generic = moved(generic, {axis: axis - 1 for axis in range(1, len(x.axes))})
    return Value(x.axes[1:], x.meaning, generic=generic)


def _stacked(y: Value, turn: Term) -> Value:
    generic = constant_generic(y)
    if generic is not None:
        generic = moved(generic, {axis: axis + 1 for axis in range(len(y.axes))})
    return Value((turn, *y.axes), y.meaning, generic=generic)


def while_(call: Call, params: Params, *values: Value) -> list[Value]:
    """As `scan`, without slices."""
    tests, consts = params["cond_nconsts"], params["body_nconsts"]
    test_consts, constant, carry = values[:tests], values[tests : tests + consts], values[tests + consts :]

    def step(carry: Sequence[Value]) -> list[Value]:
        call(params["cond_jaxpr"], [*test_consts, *carry])
        return call(params["body_jaxpr"], [*constant, *carry])

    return _fixed_point(step, carry)[0]


def cond(call: Call, params: Params, index: Value, *operands: Value) -> list[Value]:
    """All branches have one result."""
    del index
    branches = [call(branch, operands) for branch in params["branches"]]
    return [_either(*results) for results in zip(*branches, strict=True)]


def _fixed_point(
    step: Callable[[Sequence[Value]], list[Value]], carry: Sequence[Value]
) -> tuple[list[Value], list[Value]]:
    """The carry whose description one more turn does not change, and the results of the last turn.

    At each turn what is carried is described by what holds before it and after it, so descriptions only get weaker.
    Along an axis that happens `_MAX_CHANGES` times at most: then the axis is fixed, and stays so.
    """
    # What is known before the first turn need not hold at the second.
    carry = [_forgotten(x) for x in carry]
    changes = [[0] * len(x.axes) for x in carry]
    for _ in range(_MAX_TURNS):
        outs = list(map(plain, step(carry)))
        new = [_either(before, after) for before, after in zip(carry, outs, strict=False)]
        if all(map(_unchanged, carry, new)):
            return new, outs
        carry = [_settled(*pair, count) for *pair, count in zip(carry, new, changes, strict=True)]
    warnings.warn(
        f"infer_spec gives up on a loop whose description still changes after {_MAX_TURNS} turns: what it carries is "
        f"taken as fixed, so that symmetries may be missed but none is false.",
        stacklevel=2,
    )
    carry = [Value(tuple(map(ordered, x.axes)), generic=UNKNOWN) for x in carry]
    outs = list(map(plain, step(carry)))
    for after in outs[: len(carry)]:
        for term in after.axes:
            fix(term, "order")
    return carry, outs


def _settled(before: Value, after: Value, changes: list[int]) -> Value:
    """The description after a turn, fixed along the axes that have changed too often."""
    axes = []
    for axis, (old, new) in enumerate(zip(before.axes, after.axes, strict=True)):
        changes[axis] += not is_same(old, new)
        axes.append(ordered(new) if changes[axis] >= _MAX_CHANGES else new)
    return dataclasses.replace(after, axes=tuple(axes))


def _forgotten(x: Value) -> Value:
    return dataclasses.replace(plain(x), generic=constant_generic(x))


def _either(*values: Value) -> Value:
    first, *others = map(_forgotten, values)
    for other in others:
        known = first.generic is not None and other.generic is not None
        first = Value(
            tuple(map(_common, first.axes, other.axes)),
            first.meaning if first.meaning == other.meaning == Given() else None,
            generic=meet(first.generic, other.generic, len(first.axes)) if known else None,  # type: ignore[arg-type]
        )
    return first


def _common(a: Term, b: Term) -> Term:
    """As `join`; an axis that is fixed stays the same."""
    if isinstance(a, Atom) and is_fixed(a) and a.size > 1:
        fix(b, "order")
        return a
    return join(a, b)


def _unchanged(before: Value, after: Value) -> bool:
    return (
        before.meaning == after.meaning
        and before.generic == after.generic
        and all(map(is_same, before.axes, after.axes))
    )
