"""Sharded parameters: results and state are sharded as they are."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
from jax.core import Tracer
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

Trees: TypeAlias = tuple[PyTree, ...]


def propagated(function: Callable[..., Trees]) -> Callable[..., Trees]:
    """Lets the compiler choose shardings inside `function`, whose results are sharded like its positional arguments.

    Under explicit sharding (`jax.sharding.AxisType.Explicit`), jax refuses operations that do not determine the
    sharding of their result, such as adding leaves with different shardings. Under automatic sharding, this is
    `function` itself: leaves that are parted keep their sharding; one that is replicated while others are parted may
    come out parted, unless the caller's `out_shardings` say not to.
    """

    def call(*trees: PyTree, **rest: Any) -> Trees:
        shardings = jax.tree.map(lambda x: jax.typeof(x).sharding, trees)
        if not any(AxisType.Explicit in sharding.mesh.axis_types for sharding in jax.tree.leaves(shardings)):
            return function(*trees, **rest)
        automatic: Any = jax.sharding.auto_axes(lambda trees, rest: function(*trees, **rest), out_sharding=shardings)
        return automatic(trees, rest)

    return call


def replicated(x: Array, beside: PyTree) -> Array:
    """The array on all devices of the mesh of the arrays beside it, where a step with them would leave it."""
    for leaf in jax.tree.leaves(beside):
        concrete = isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer)
        if concrete and isinstance(leaf.sharding, NamedSharding):
            return jax.device_put(x, NamedSharding(leaf.sharding.mesh, PartitionSpec()))
    return x


def placements(trees: PyTree) -> PyTree:
    """How arrays are spread over devices, where no type says it; `None` where there is nothing to say."""
    found = jax.tree.map(_placement, trees)
    return found if jax.tree.leaves(found) else None


def _placement(x: Any) -> NamedSharding | None:
    sharding = x.sharding if isinstance(x, jax.Array) and not isinstance(x, Tracer) else None
    if isinstance(sharding, NamedSharding) and AxisType.Explicit not in sharding.mesh.axis_types:
        return sharding
    return None
