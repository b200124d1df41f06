"""Following a function, operation by operation: from the values of its inputs to the values of its outputs."""

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from optax_unf.infer import contraction, control, elementwise, indexing, structural
from optax_unf.infer.terms import fix, is_movable
from optax_unf.infer.value import Given, Value, constant_value, index_terms, scattered

Rule: TypeAlias = Callable[["Interpreter", JaxprEqn, tuple[Value, ...]], Value | Sequence[Value]]

_SCATTERS = ("scatter", "scatter-add", "scatter-mul", "scatter-min", "scatter-max", "scatter-sub")
# These make what they can of positions in an axis that moves. Anything else that computes with them sees its order.
_READS_INDICES = {"gather", "dynamic_slice", "eq", "ne", "lt", *_SCATTERS}
_IGNORED = {"debug_callback", "debug_print"}


class Interpreter:
    """Applies the rules, and remembers which primitives had none.

    Attributes:
      strict: whether a primitive without a rule is an error.
    """

    def __init__(self, *, strict: bool = False) -> None:
        self.strict = strict
        self._unknown: set[str] = set()
        self._within: list[JaxprEqn] = []  # the operations that are being followed, from the outermost

    def run(self, jaxpr: Jaxpr, consts: Sequence[Value], inputs: Sequence[Value]) -> list[Value]:
        """The outputs of a jaxpr."""
        env: dict[Any, Value] = dict(zip(jaxpr.constvars, consts, strict=True))
        env |= zip(jaxpr.invars, inputs, strict=True)

        def read(atom: Any) -> Value:
            return constant_value(np.asarray(atom.val)) if isinstance(atom, Literal) else env[atom]

        for eqn in jaxpr.eqns:
            self._within.append(eqn)
            env |= zip(eqn.outvars, self._apply(eqn, tuple(map(read, eqn.invars))), strict=True)
            self._within.pop()
        return [read(atom) for atom in jaxpr.outvars]

    def call(self, closed: ClosedJaxpr | Jaxpr, inputs: Sequence[Value]) -> list[Value]:
        """The outputs of a jaxpr that brings its constants along."""
        if isinstance(closed, Jaxpr):
            return self.run(closed, (), inputs)
        return self.run(closed.jaxpr, [constant_of(const) for const in closed.consts], inputs)

    def _apply(self, eqn: JaxprEqn, values: tuple[Value, ...]) -> Sequence[Value]:
        rule = _RULES.get(eqn.primitive.name)
        if rule is None and (inner := _inner_call(eqn)) is not None:
            return self.call(inner, values)
        out = self._give_up(eqn, values) if rule is None else rule(self, eqn, values)
        outs = [out] if isinstance(out, Value) else list(out)
        if eqn.primitive.name not in elementwise.NAMES and any(v.zeros for v in values):
            outs = [dataclasses.replace(v, zeros=True) for v in outs]
        if eqn.primitive.name not in _READS_INDICES:
            kept = [term for value in outs for term in index_terms(value.meaning)]
            for term in (term for value in values for term in index_terms(value.meaning)):
                if not any(term is other for other in kept):
                    fix(term, "order")
        given = any(isinstance(v.meaning, Given) for v in values)
        if given and all(isinstance(v.meaning, Given) or v.constant is not None for v in values):
            outs = [dataclasses.replace(v, meaning=v.meaning or Given()) for v in outs]
        return outs

    def _give_up(self, eqn: JaxprEqn, values: tuple[Value, ...]) -> list[Value]:
        name = eqn.primitive.name
        touched = [term for value in values for term in value.axes]
        if name not in self._unknown | _IGNORED and any(map(is_movable, touched)):
            message = (
                f"infer_spec has no rule for the primitive {name!r}, used at {_source(self._within)}: the axes of its "
                f"operands are taken as fixed, so that symmetries may be missed but none is false."
            )
            if self.strict:
                raise NotImplementedError(f"{message} Replace the operation, or drop strict=True.")
            warnings.warn(message, stacklevel=2)
            self._unknown.add(name)
        if name not in _IGNORED:
            for term in touched:
                fix(term, "unknown")
        return [Value(scattered(_shape(var), "unknown")) for var in eqn.outvars]


def constant_of(const: Any) -> Value:
    """The value of an array that the function holds."""
    try:
        return constant_value(np.asarray(const))
    except (TypeError, ValueError):  # such as a PRNG key
        return Value(scattered(tuple(np.shape(const)), "constant"))


def _shape(var: Any) -> tuple[int, ...]:
    return tuple(getattr(var.aval, "shape", ()))


def _inner_call(eqn: JaxprEqn) -> ClosedJaxpr | Jaxpr | None:
    """The one jaxpr that the operation is a call of, as for `jit`, `remat`, `custom_jvp` and the like."""
    found = [x for x in eqn.params.values() if isinstance(x, ClosedJaxpr | Jaxpr)]
    if len(found) != 1:
        return None
    inner = found[0].jaxpr if isinstance(found[0], ClosedJaxpr) else found[0]
    same = [_shape(v) for v in inner.invars] == [_shape(v) for v in eqn.invars]
    same &= [_shape(v) for v in inner.outvars] == [_shape(v) for v in eqn.outvars]
    return found[0] if same and not (isinstance(found[0], Jaxpr) and found[0].constvars) else None


def _source(within: Sequence[JaxprEqn]) -> str:
    """The innermost line of the user's that made the operation."""
    for eqn in reversed(within):
        traceback = eqn.source_info.traceback
        for frame in traceback.frames if traceback else ():
            if "/jax/" not in frame.file_name.replace("\\", "/"):
                return f"{frame.file_name}:{frame.line_num}"
    return "an unknown line"


def _shapes(rule: Callable[..., Any]) -> Rule:
    return lambda _, eqn, values: rule(_shape(eqn.outvars[0]), eqn.params, *values)


def _plain(rule: Callable[..., Any]) -> Rule:
    return lambda _, eqn, values: rule(eqn.params, *values)


def _collective(interpreter: Interpreter, eqn: JaxprEqn, values: tuple[Value, ...]) -> Sequence[Value]:
    """Under `jax.vmap` with a name for its axis, this reduces an axis of the array."""
    if eqn.params.get("axis_index_groups") is not None or not all(isinstance(axis, int) for axis in eqn.params["axes"]):
        return interpreter._give_up(eqn, values)
    return [structural.reduction(eqn.params, x) for x in values]


def _elementwise(_: Interpreter, eqn: JaxprEqn, values: tuple[Value, ...]) -> list[Value]:
    name = eqn.primitive.name
    if name == "optimization_barrier":
        return list(values)
    if name == "bitcast_convert_type" and values[0].shape != _shape(eqn.outvars[0]):
        for term in values[0].axes:
            fix(term, "order")
        return [Value(scattered(_shape(var), "order")) for var in eqn.outvars]
    (var,) = eqn.outvars
    return [elementwise.elementwise(name, _shape(var), getattr(var.aval, "dtype", None), values)]


_RULES: dict[str, Rule] = {
    **dict.fromkeys(elementwise.NAMES, _elementwise),
    "transpose": _plain(structural.transpose),
    "broadcast_in_dim": lambda _, eqn, values: structural.broadcast_in_dim(
        _shape(eqn.outvars[0]), {"broadcast_dimensions": tuple(range(len(values[0].axes)))} | eqn.params, values[0]
    ),
    "reshape": lambda _, eqn, values: structural.reshape(_shape(eqn.outvars[0]), values[0]),
    "squeeze": _shapes(structural.squeeze),
    "concatenate": _shapes(structural.concatenate),
    "stack": _shapes(structural.stack),
    "split": _plain(structural.split),
    "unstack": _plain(structural.unstack),
    "tile": _plain(structural.tile),
    "slice": _shapes(structural.slice_),
    "pad": _shapes(structural.pad),
    **dict.fromkeys(
        ("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or", "reduce_xor"),
        _plain(structural.reduction),
    ),
    **dict.fromkeys(("psum", "pmax", "pmin"), _collective),
    **dict.fromkeys(("argmax", "argmin"), _plain(structural.argmax)),
    "top_k": _plain(structural.top_k),
    "sort": _plain(structural.sort),
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp", "rev"), _plain(structural.ordered)),
    "iota": _plain(structural.iota),
    **dict.fromkeys(
        ("reduce_window", "reduce_window_max", "reduce_window_min", "reduce_window_sum", "select_and_scatter_add"),
        _shapes(structural.window),
    ),
    "random_bits": lambda _, eqn, values: structural.random_bits(_shape(eqn.outvars[0])),
    **dict.fromkeys(
        ("random_seed", "random_split", "random_fold_in", "random_wrap", "random_unwrap", "random_clone"),
        lambda _, eqn, values: Value(scattered(_shape(eqn.outvars[0]), "noise")),
    ),
    "gather": _shapes(indexing.gather),
    **{name: lambda _, eqn, values: indexing.scatter(eqn.primitive.name, eqn.params, *values) for name in _SCATTERS},
    "dynamic_slice": _plain(indexing.dynamic_slice),
    "dynamic_update_slice": lambda _, eqn, values: indexing.dynamic_update_slice(*values),
    "dot_general": _plain(contraction.dot_general),
    "conv_general_dilated": _shapes(contraction.convolution),
    "scan": lambda self, eqn, values: control.scan(self.call, eqn.params, *values),
    "while": lambda self, eqn, values: control.while_(self.call, eqn.params, *values),
    "cond": lambda self, eqn, values: control.cond(self.call, eqn.params, *values),
}
