"""The UNF layer against Algorithm 1, against group averages, and under the group's action."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optax_unf import make_spec
from optax_unf.basis import apply_term, basis
from optax_unf.contract import contractions, expansions
from optax_unf.nn import UNF

SIZES = {"a": 2, "b": 3, "c": 4, "d": 1, "e": 0}


def leaf_axes(max_rank=4, names="abcd"):
    return st.lists(st.sampled_from(names), max_size=max_rank).map(tuple)


def random_spaces(max_leaves=4, max_rank=4, names="abcd"):
    return st.lists(leaf_axes(max_rank, names), min_size=1, max_size=max_leaves)


def make_space(axes):
    tree = {f"leaf_{i}": a for i, a in enumerate(axes)}
    params = {path: jnp.zeros(tuple(SIZES[n] for n in a)) for path, a in tree.items()}
    return make_spec(tree, params)


def random_features(spec, key, channels, dtype=jnp.float32):
    keys = jax.random.split(key, len(spec.leaves))
    return {
        leaf.path: jax.random.normal(k, (*leaf.shape, channels), dtype)
        for k, leaf in zip(keys, spec.leaves, strict=True)
    }


def randomize(variables, key):
    leaves, treedef = jax.tree.flatten(variables)
    keys = jax.random.split(key, len(leaves))
    return treedef.unflatten([jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)])


def bell(n):
    row = [1]
    for _ in range(n):
        row = list(itertools.accumulate(row, initial=row[-1]))
    return row[0]


@settings(max_examples=40, deadline=None)
@given(random_spaces(max_leaves=3, max_rank=3), st.sampled_from(["full", "tied"]), st.integers(0, 2**31))
def test_commutes_with_the_group(axes, coefficients, seed):
    spec = make_space(axes)
    keys = jax.random.split(jax.random.key(seed), 4)
    layer = UNF(spec, 2, coefficients)
    x = random_features(spec, keys[0], 3)
    variables = randomize(layer.init(keys[1], x), keys[2])
    g = spec.random_permutation(keys[3])
    apply = jax.jit(layer.apply)
    once, twice = spec.permute(g, apply(variables, x)), apply(variables, spec.permute(g, x))
    for a, b in zip(jax.tree.leaves(once), jax.tree.leaves(twice), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5 * (1 + float(jnp.abs(a).max(initial=0))))


@settings(max_examples=60, deadline=None)
@given(leaf_axes(), leaf_axes())
def test_pairs_of_equal_signature_are_the_valid_partitions(target, source):
    numbers = {name: i for i, name in enumerate("abcd")}
    target, source = (tuple(numbers[n] for n in axes) for axes in (target, source))
    pairs = sum(len(expansions(target, signature)) for _, signature in contractions(source))
    expected = math.prod(bell(target.count(n) + source.count(n)) for n in numbers.values())
    assert pairs == expected


def stacked_layer_maps(spec, seed):
    """Row k: the matrix of the layer when only its k-th coefficient is 1, in float64."""
    layer = UNF(spec, 1, use_bias=False)
    total = sum(math.prod(leaf.shape) for leaf in spec.leaves)
    splits = np.cumsum([math.prod(leaf.shape) for leaf in spec.leaves])[:-1]

    def flat(variables, x):
        parts = jnp.split(x, splits)
        tree = {l.path: p.reshape(*l.shape, 1) for l, p in zip(spec.leaves, parts, strict=True)}
        return jnp.concatenate([layer.apply(variables, tree)[l.path].ravel() for l in spec.leaves])

    zeros = {leaf.path: jnp.zeros((*leaf.shape, 1)) for leaf in spec.leaves}
    variables = jax.tree.map(lambda x: x.astype(jnp.float64), layer.init(jax.random.key(seed), zeros))
    maps = jax.jit(jax.jacobian(lambda v: jax.vmap(lambda x: flat(v, x), out_axes=1)(jnp.eye(total))))(variables)
    return np.concatenate([np.reshape(np.moveaxis(m.reshape(total**2, -1), 0, 1), (-1, total**2)) for m in jax.tree.leaves(maps)])


def stacked_basis_maps(spec):
    """Row k: the matrix of the k-th basis term of Algorithm 1, in float64."""
    ends = np.cumsum([math.prod(leaf.shape) for leaf in spec.leaves])
    total = int(ends[-1])
    rows = []
    for term in basis(spec):
        source, target = spec.leaves[term.source], spec.leaves[term.target]
        n = math.prod(source.shape)
        out = apply_term(term, spec, jnp.eye(n).reshape(*source.shape, n))
        matrix = np.zeros((total, total))
        i, j = ends[term.target], ends[term.source]
        matrix[i - math.prod(target.shape) : i, j - n : j] = out.reshape(-1, n)
        rows.append(matrix.ravel())
    return np.array(rows)


def rank(rows):
    if min(rows.shape) == 0:
        return 0
    # The Gram matrix of the shorter side has the same rank and is small.
    gram = rows @ rows.T if rows.shape[0] <= rows.shape[1] else rows.T @ rows
    eigenvalues = np.linalg.eigvalsh(gram)
    return int((eigenvalues > 1e-10 * max(eigenvalues[-1], 1)).sum())


@settings(max_examples=25, deadline=None)
@given(random_spaces(max_leaves=3, max_rank=2, names="abd"))
def test_spans_what_algorithm_1_spans(axes):
    spec = make_space(axes)
    with jax.enable_x64(True):
        mine, theirs = stacked_layer_maps(spec, 0), stacked_basis_maps(spec)
    assert rank(mine) == rank(theirs) == rank(np.concatenate([mine, theirs]))


@pytest.mark.parametrize(
    "axes",
    [
        [("a", "a", "a")],
        [("b", "b"), ("b",)],
        [("a", "a", "a", "a")],
        [("b", "a", "b"), ("a",), ()],
        [("a", "b", "c", "d"), ("c", "b")],
    ],
)
def test_spans_what_algorithm_1_spans_with_repeated_names(axes):
    spec = make_space(axes)
    with jax.enable_x64(True):
        mine, theirs = stacked_layer_maps(spec, 0), stacked_basis_maps(spec)
    assert rank(mine) == rank(theirs) == rank(np.concatenate([mine, theirs]))
