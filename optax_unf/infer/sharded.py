"""Rules for `shard_map` and its collectives: what one device has is described as what every device has."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from optax_unf.infer.control import Call
from optax_unf.infer.generic import UNKNOWN, moved
from optax_unf.infer.structural import reduction, split_factor
from optax_unf.infer.terms import Atom, Term, fix, product_of
from optax_unf.infer.value import Value, constant_generic, plain

Params = dict[str, Any]


def shard_map(call: Call, params: Params, *values: Value) -> list[Value]:
    """A sharded axis is a product: of the devices, which are in order, and of what each has."""
    sizes = dict(params["mesh"].shape)
    inputs = [_shard(x, _shards(spec, len(x.axes), sizes)) for x, spec in zip(values, params["in_specs"], strict=True)]
    outs = call(params["jaxpr"], inputs)
    return [_whole(y, _shards(spec, len(y.axes), sizes)) for y, spec in zip(outs, params["out_specs"], strict=True)]


def _shards(spec: Sequence[Any], rank: int, sizes: Mapping[str, int]) -> list[int]:
    """Into how many pieces each axis is cut."""
    names = [(n,) if isinstance(n, str) else n or () for n in spec] + [()] * (rank - len(spec))
    return [math.prod(sizes[name] for name in axis) for axis in names]


def _shard(x: Value, shards: Sequence[int]) -> Value:
    if math.prod(shards) == 1:
        return x
    axes: list[Term] = []
    for term, n in zip(plain(x).axes, shards, strict=True):
        devices, term = split_factor(term, n)
        fix(devices, "order")
        axes.append(term)
    return _described(x, axes, shards)


def _whole(y: Value, shards: Sequence[int]) -> Value:
    if math.prod(shards) == 1:
        return plain(y)
    axes = [
        product_of([Atom(n, "order"), term]) if n > 1 else term for term, n in zip(plain(y).axes, shards, strict=True)
    ]
    return _described(y, axes, shards)


def _described(x: Value, axes: Sequence[Term], shards: Sequence[int]) -> Value:
    generic = constant_generic(x) or UNKNOWN
    generic = moved(generic, {axis: axis for axis, n in enumerate(shards) if n == 1})
    return Value(tuple(axes), plain(x).meaning, generic=generic)


def collective(params: Params, *xs: Value) -> list[Value]:
    """A sum or the like over devices, and over axes of the array that `jax.vmap` has given a name."""
    mapped = tuple(axis for axis in params.get("axes", ()) if isinstance(axis, int))
    return [reduction({"axes": mapped}, x) for x in map(plain, xs)]


def all_gather(shape: tuple[int, ...], params: Params, x: Value) -> Value:
    """What all devices have, in order, along an axis of its own or as parts of one."""
    axis, devices = params["all_gather_dimension"], Atom(params["axis_size"], "order")
    axes = list(plain(x).axes)
    if len(shape) > len(axes):
        axes.insert(axis, devices)
    else:
        axes[axis] = product_of([devices, axes[axis]])
    return Value(tuple(axes))


def reduce_scatter(shape: tuple[int, ...], params: Params, x: Value) -> Value:
    """A sum over devices, of which each gets a part."""
    axis = params["scatter_dimension"]
    devices, rest = split_factor(plain(x).axes[axis], params["axis_size"])
    fix(devices, "order")
    axes = list(x.axes)
    axes[axis : axis + 1] = [rest] if len(shape) == len(axes) else []
    return Value(tuple(axes))
