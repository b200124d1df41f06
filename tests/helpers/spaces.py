"""Weight spaces, features and matrices of layers that the tests share."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from optax_unf import make_spec
from optax_unf.equivariant.basis import basis

SIZES = {"a": 2, "b": 3, "c": 4, "d": 1, "e": 0}


def leaf_axes(max_rank=4, names="abcd"):
    return st.lists(st.sampled_from(names), max_size=max_rank).map(tuple)


def random_spaces(max_leaves=4, max_rank=4, names="abcd", max_terms=300):
    """Axes of the leaves of spaces with at most `max_terms` basis terms, so that the layer compiles quickly."""
    return st.lists(leaf_axes(max_rank, names), min_size=1, max_size=max_leaves).filter(
        lambda axes: count_terms(axes) <= max_terms
    )


def count_terms(axes):
    """How many valid partitions all ordered pairs of leaves have."""
    return sum(
        math.prod(bell(target.count(name) + source.count(name)) for name in {*target, *source})
        for target in axes
        for source in axes
    )


def make_space(axes):
    tree = {f"leaf_{i}": a for i, a in enumerate(axes)}
    params = {path: np.zeros([SIZES[n] for n in a]) for path, a in tree.items()}
    return make_spec(tree, params)


def random_features(spec, key, channels, dtype=jnp.float32):
    rng = _generator(key)
    return {leaf.path: _normal(rng, (*leaf.shape, channels), dtype) for leaf in spec.leaves}


def randomize(variables, key):
    """Normal numbers in the shapes of `variables`, which may be what `jax.eval_shape` returns."""
    rng = _generator(key)
    return jax.tree.map(lambda x: _normal(rng, x.shape, x.dtype), variables)


def _normal(rng, shape, dtype):
    # jax would compile programs for each shape.
    return jnp.asarray(rng.normal(size=shape).astype(dtype))


def _generator(key):
    return np.random.default_rng(np.asarray(jax.random.key_data(key)))


def both_orders(function, spec):
    """The jitted map from `(g, x)` to g acting on the function's value, and on its argument."""
    return jax.jit(lambda g, x: (spec.permute(g, function(x)), function(spec.permute(g, x))))


def assert_close(left, right, tolerance=2e-5):
    """Trees are equal up to rounding, relative to the largest entry of each leaf."""
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        a = np.asarray(a)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * (1 + float(np.abs(a).max(initial=0))))


def bell(n):
    row = [1]
    for _ in range(n):
        row = list(itertools.accumulate(row, initial=row[-1]))
    return row[0]


def stacked_layer_maps(layer, spec):
    """Row k: the matrix of the linear layer (one channel to one) when only its k-th coefficient is 1, in float64."""
    total = sum(math.prod(leaf.shape) for leaf in spec.leaves)
    splits = np.cumsum([math.prod(leaf.shape) for leaf in spec.leaves])[:-1]

    def flat(variables, x):
        parts = jnp.split(x, splits)
        tree = {leaf.path: p.reshape(*leaf.shape, 1) for leaf, p in zip(spec.leaves, parts, strict=True)}
        return jnp.concatenate([layer.apply(variables, tree)[leaf.path].ravel() for leaf in spec.leaves])

    zeros = {leaf.path: np.zeros((*leaf.shape, 1), np.float32) for leaf in spec.leaves}
    shapes = jax.eval_shape(layer.init, jax.random.key(0), zeros)
    variables = jax.tree.map(lambda x: np.zeros(x.shape), shapes)
    # One pass for each coefficient, or one for each entry of the matrix.
    jacobian = jax.jacfwd if sum(x.size for x in jax.tree.leaves(variables)) < total**2 else jax.jacrev
    maps = jax.jit(jacobian(lambda v: jax.vmap(lambda x: flat(v, x), out_axes=1)(jnp.eye(total))))(variables)
    return np.concatenate([np.asarray(m).reshape(total**2, -1).T.reshape(-1, total**2) for m in jax.tree.leaves(maps)])


def stacked_basis_maps(spec):
    """Row k: the matrix of the k-th basis term of Algorithm 1: 1 where the indices in each block are equal."""
    ends = np.cumsum([math.prod(leaf.shape) for leaf in spec.leaves])
    total = int(ends[-1])
    terms = basis(spec)
    matrices = np.zeros((len(terms), total, total))
    for matrix, term in zip(matrices, terms, strict=True):
        source, target = spec.leaves[term.source], spec.leaves[term.target]
        m, n = math.prod(target.shape), math.prod(source.shape)
        indices = np.indices((*target.shape, *source.shape)).reshape(-1, m, n)
        equal = [indices[i] == indices[block[0]] for block in term.partition for i in block]
        i, j = ends[term.target], ends[term.source]
        matrix[i - m : i, j - n : j] = np.all(equal, axis=0)
    return matrices.reshape(len(terms), -1)


def rank(rows):
    if min(rows.shape) == 0:
        return 0
    # The Gram matrix of the shorter side has the same rank and is small.
    gram = rows @ rows.T if rows.shape[0] <= rows.shape[1] else rows.T @ rows
    eigenvalues = np.linalg.eigvalsh(gram)
    return int((eigenvalues > 1e-10 * max(eigenvalues[-1], 1)).sum())
