"""Rules for control flow: what is carried around a loop has one description at all its turns."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from optax_unf.infer.terms import Atom, Term, Uniform, fix, is_same, is_uniform, join
from optax_unf.infer.value import Given, Value, plain

Params = dict[str, Any]
Call: TypeAlias = Callable[[Any, Sequence[Value]], list[Value]]  # the outputs of a jaxpr


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
        if carried:
            fix(x.axes[0], "order")
        turn = join(turn, x.axes[0])
    # At every turn the body sees another slice, so nothing is known about it but its axes and where it comes from.
    slices = [Value(x.axes[1:], x.meaning, x.sources) for x in map(plain, scanned)]

    def step(carry: Sequence[Value]) -> list[Value]:
        return call(params["jaxpr"], [*constant, *carry, *slices])

    carry, outs = _fixed_point(step, carry)
    if carried and is_uniform(turn) and length > 1:
        turn = Atom(length, "order")
    stacked = [Value((turn, *y.axes), y.meaning, y.sources) for y in outs[carried:]]
    return [*carry, *stacked]


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
    """The carry whose description one more turn does not change, and the results of the last turn."""
    # What is known before the first turn need not hold at the second.
    carry = list(map(plain, carry))
    while True:
        outs = list(map(plain, step(carry)))
        new = [_either(before, after) for before, after in zip(carry, outs, strict=False)]
        if all(_unchanged(before, after) for before, after in zip(carry, new, strict=True)):
            return new, outs
        carry = new


def _either(*values: Value) -> Value:
    first, *others = map(plain, values)
    for other in others:
        first = Value(
            tuple(map(join, first.axes, other.axes)),
            first.meaning if first.meaning == other.meaning == Given() else None,
            first.sources if first.sources == other.sources else None,
        )
    return first


def _unchanged(before: Value, after: Value) -> bool:
    return (
        before.meaning == after.meaning
        and before.sources == after.sources
        and all(map(is_same, before.axes, after.axes))
    )
