"""Following a function, operation by operation: from the values of its inputs to the values of its outputs."""

import dataclasses
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from optax_unf.infer import contraction, control, elementwise, indexing, sharded, structural
from optax_unf.infer.axes import reasons_of
from optax_unf.infer.generic_rules import generic_of
from optax_unf.infer.terms import fix, is_movable
from optax_unf.infer.value import Given, Value, constant_value, index_terms, scattered

Rule: TypeAlias = Callable[["Interpreter", JaxprEqn, tuple[Value, ...]], Value | Sequence[Value]]

_SCATTERS = ("scatter", "scatter-add", "scatter-mul", "scatter-min", "scatter-max", "scatter-sub")
_COMPARES = {"argmax", "argmin", "top_k", "sort"}
# These follow functions, whose operations say what is true of the results.
_CALLS = {"scan", "while", "cond", "shard_map"}
# These make what they can of positions in an axis that moves. Anything else that computes with them sees its order.
_READS_INDICES = {"gather", "dynamic_slice", "eq", "ne", "lt", *_SCATTERS}
_IGNORED = {"debug_callback", "debug_print"}


class Interpreter:
    """Applies the rules, and remembers which primitives had none.

    Attributes:
      strict: whether a primitive without a rule is an error.
      has_ties: whether there are operations that have to know which entries may be equal.
    """

    def __init__(self, *, strict: bool = False, has_ties: bool = True) -> None:
        self.strict = strict
        self.has_ties = has_ties
        self._unknown: set[str] = set()
        self._silent: dict[str, str] = {}  # messages about those whose operands do not move
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
        if self.has_ties and eqn.primitive.name not in _CALLS:
            found = generic_of(eqn, values)
            outs = [dataclasses.replace(v, generic=g) for v, g in zip(outs, found, strict=True)]
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
        if name in _IGNORED:
            return [Value(scattered(_shape(var), "unknown")) for var in eqn.outvars]
        touched = [term for value in values for term in value.axes]
        if name not in self._unknown:
            message = (
                f"infer_spec has no rule for the primitive {name!r}, used at {_source(self._within)}: the axes of its "
                f"operands and results are taken as fixed, so that symmetries may be missed but none is false."
            )
            if any(map(is_movable, touched)):
                self._warn(name, message)
            elif any(math.prod(_shape(var)) > 1 for var in eqn.outvars):
                self._silent.setdefault(name, message)
        for term in touched:
            fix(term, "unknown")
        # What is computed from data alone is data.
        data = values and all(isinstance(v.meaning, Given) or v.constant is not None for v in values)
        reasons = ("unknown", "data") if data and "callback" not in name else ("unknown",)
        return [Value(scattered(_shape(var), *reasons)) for var in eqn.outvars]

    def _warn(self, name: str, message: str) -> None:
        if self.strict:
            raise NotImplementedError(f"{message} Replace the operation, or drop strict=True.")
        warnings.warn(message, stacklevel=2)
        self._unknown.add(name)

    def finish(self, parameters: Sequence[Value]) -> None:
        """Warns of operations without a rule whose results alone keep an axis of the parameters from moving."""
        if any({*reasons_of(term)} == {"unknown"} for value in parameters for term in value.axes):
            for name, message in self._silent.items():
                if name not in self._unknown:
                    self._warn(name, message)


def has_ties(jaxpr: Jaxpr) -> bool:
    """Whether an operation in it has to know which entries may be equal."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in _COMPARES and (eqn.primitive.name != "sort" or len(eqn.invars) > 1):
            return True
        for inner in jax.tree.leaves(eqn.params, is_leaf=lambda x: isinstance(x, Jaxpr | ClosedJaxpr)):
            inner = inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner
            if isinstance(inner, Jaxpr) and has_ties(inner):
                return True
    return False


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
    groups = eqn.params.get("axis_index_groups")
    if groups is not None and any(isinstance(axis, int) for axis in eqn.params["axes"]):
        return interpreter._give_up(eqn, values)
    return sharded.collective(eqn.params, *values)


def _shard_map(interpreter: Interpreter, eqn: JaxprEqn, values: tuple[Value, ...]) -> Sequence[Value]:
    if "in_specs" not in eqn.params:  # before JAX 0.8
        return interpreter._give_up(eqn, values)
    return sharded.shard_map(interpreter.call, eqn.params, *values)


def _elementwise(_: Interpreter, eqn: JaxprEqn, values: tuple[Value, ...]) -> list[Value]:
    name = eqn.primitive.name
    if name in ("optimization_barrier", "device_put"):
        return list(values)
    if name == "bitcast_convert_type" and values[0].shape != _shape(eqn.outvars[0]):
        for term in values[0].axes:
            fix(term, "order")
        return [Value(scattered(_shape(var), "order")) for var in eqn.outvars]
    (var,) = eqn.outvars
    return [elementwise.elementwise(name, _shape(var), getattr(var.aval, "dtype", None), values)]


_RULES: dict[str, Rule] = {
    **dict.fromkeys((*elementwise.NAMES, "device_put", "optimization_barrier"), _elementwise),
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
    **dict.fromkeys(("psum", "pmax", "pmin", "psum_invariant"), _collective),
    **dict.fromkeys(("pvary", "ppermute"), lambda _, eqn, values: sharded.collective({}, *values)),
    "axis_index": lambda _, eqn, values: Value(()),
    "all_gather": _shapes(sharded.all_gather),
    "reduce_scatter": _shapes(sharded.reduce_scatter),
    "shard_map": _shard_map,
    **dict.fromkeys(("argmax", "argmin"), _plain(structural.argmax)),
    "top_k": _plain(structural.top_k),
    "sort": _plain(structural.sort),
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"), _plain(structural.cumulative)),
    "rev": _plain(structural.rev),
    "iota": _plain(structural.iota),
    **dict.fromkeys(
        ("reduce_window", "reduce_window_max", "reduce_window_min", "reduce_window_sum", "select_and_scatter_add"),
        _shapes(structural.window),
    ),
    **dict.fromkeys(
        (
            *("random_bits", "random_clone", "random_fold_in", "random_seed", "random_split", "random_unwrap"),
            *("random_wrap", "rng_uniform", "threefry2x32"),
        ),
        lambda _, eqn, values: [structural.random(_shape(var), eqn.params, *values) for var in eqn.outvars],
    ),
    "random_gamma": _shapes(structural.random_gamma),
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
