"""Sharded parameters, where their shardings are part of their types."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
from jax.sharding import AxisType
from jaxtyping import PyTree

Trees: TypeAlias = tuple[PyTree, ...]


def propagated(function: Callable[..., Trees]) -> Callable[..., Trees]:
    """Lets the compiler choose shardings inside `function`, whose results are sharded like its positional arguments.

    Under explicit sharding (`jax.sharding.AxisType.Explicit`), jax refuses operations that do not determine the
    sharding of their result, such as adding leaves with different shardings. Under automatic sharding, and without
    any, this is `function` itself.
    """

    def call(*trees: PyTree, **rest: Any) -> Trees:
        shardings = jax.tree.map(lambda x: jax.typeof(x).sharding, trees)
        if not any(AxisType.Explicit in sharding.mesh.axis_types for sharding in jax.tree.leaves(shardings)):
            return function(*trees, **rest)
        automatic: Any = jax.sharding.auto_axes(lambda trees, rest: function(*trees, **rest), out_sharding=shardings)
        return automatic(trees, rest)

    return call
