"""Sharded parameters, where their shardings are part of their types."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
from jax.sharding import AxisType
from jaxtyping import Array

Leaves: TypeAlias = Sequence[Array]
Result: TypeAlias = tuple[list[Array], list[list[Array]]]


def propagated(function: Callable[..., Result]) -> Callable[..., Result]:
    """Lets the compiler choose shardings inside `function`, whose results are sharded like its positional arguments.

    Under explicit sharding (`jax.sharding.AxisType.Explicit`), jax refuses operations that do not determine the
    sharding of their result, such as adding leaves with different shardings. Under automatic sharding, and without
    any, this is `function` itself.
    """

    def call(leaves: Leaves, trees: Sequence[Leaves], **rest: Any) -> Result:
        types = [jax.typeof(x) for x in (*leaves, *(x for tree in trees for x in tree))]
        if not any(AxisType.Explicit in x.sharding.mesh.axis_types for x in types):
            return function(leaves, trees, **rest)
        shardings = jax.tree.map(lambda x: jax.typeof(x).sharding, (list(leaves), [list(tree) for tree in trees]))
        automatic: Any = jax.sharding.auto_axes(lambda args, rest: function(*args, **rest), out_sharding=shardings)
        return automatic((leaves, trees), rest)

    return call
