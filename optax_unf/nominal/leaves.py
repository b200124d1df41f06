"""Trees as leaves by path, and leaves as the matrices in them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from optax_unf._dtypes import at_least_float32
from optax_unf.nominal.matrix import LeafMatrices, Matrix
from optax_unf.spec.leaf import join_parts, split_parts
from optax_unf.spec.paths import leaves_by_path

Leaves: TypeAlias = dict[str, Array]
Found: TypeAlias = dict[str, LeafMatrices]


def found_by_path(find: Callable[[PyTree], tuple[LeafMatrices, ...]], params: PyTree) -> Found:
    """What each leaf is taken for."""
    # optax.tree.map_params passes a placeholder, without leaves, which no spec fits.
    return {leaf.path: leaf for leaf in find(params)} if jax.tree.leaves(params) else {}


def zeros(params: PyTree, paths: Sequence[str]) -> PyTree:
    """Zeros like the parameters of these paths, at least float32, and masked nodes for the others."""
    dtypes = {path: at_least_float32(jnp.result_type(x)) for path, x in leaves_by_path(params).items()}
    leaves = [
        jnp.zeros_like(x, dtypes[path]) if path in paths else optax.MaskedNode()
        for path, x in leaves_by_path(params).items()
    ]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def refilled(tree: PyTree, leaves: Leaves) -> PyTree:
    """The tree with these leaves."""
    return jax.tree.unflatten(jax.tree.structure(tree), [leaves[path] for path in leaves_by_path(tree)])


def taken_matrices(leaves: Mapping[str, Array], found: Found) -> dict[str, Array]:
    """The matrices of all leaves, [batch, rows, columns], by the path and the number of the part."""
    return {
        key: matrix.flatten(part)
        for path, x in leaves.items()
        for key, matrix, part in _parts(path, x, found)
        if matrix is not None
    }


def with_matrices(leaves: Leaves, matrices: Mapping[str, Array], found: Found) -> Leaves:
    """The leaves, with these in place of their own matrices."""
    joined = {}
    for path, x in leaves.items():
        parts = [
            part if matrix is None else matrix.unflatten(matrices[key], part.shape)
            for key, matrix, part in _parts(path, x, found)
        ]
        joined[path] = join_parts(parts, found[path].leaf)
    return joined


def _parts(path: str, x: Array, found: Found) -> Iterator[tuple[str, Matrix | None, Array]]:
    taken = found[path]
    for k, (matrix, part) in enumerate(zip(taken.matrices, split_parts(x, taken.leaf), strict=True)):
        yield f"{path}:{k}", matrix, part
