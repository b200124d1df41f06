"""The UNF layer against Algorithm 1, against group averages, and under the group's action."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spaces import (
    bell,
    leaf_axes,
    make_space,
    random_features,
    random_spaces,
    randomize,
    rank,
    stacked_basis_maps,
    stacked_layer_maps,
)

from optax_unf.contract import contractions, expansions
from optax_unf.nn import UNF


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


@settings(max_examples=25, deadline=None)
@given(random_spaces(max_leaves=3, max_rank=2, names="abd"))
def test_spans_what_algorithm_1_spans(axes):
    spec = make_space(axes)
    with jax.enable_x64(True):
        mine, theirs = stacked_layer_maps(UNF(spec, 1, use_bias=False), spec), stacked_basis_maps(spec)
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
        mine, theirs = stacked_layer_maps(UNF(spec, 1, use_bias=False), spec), stacked_basis_maps(spec)
    assert rank(mine) == rank(theirs) == rank(np.concatenate([mine, theirs]))
