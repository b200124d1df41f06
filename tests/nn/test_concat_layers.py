"""Layers, weights and the optimizer on concatenated axes, against the same space with each part as a leaf."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from concat_spaces import (
    brief_concat_axes,
    concat_axes,
    make_concat_space,
    make_separate_space,
    positions,
    separate_axes,
    separate_features,
    size_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from spaces import (
    assert_close,
    both_orders,
    count_terms,
    make_space,
    random_features,
    randomize,
    rank,
    stacked_layer_maps,
)

from optax_unf import (
    Architecture,
    Concat,
    Fixed,
    InitialScalars,
    MetaWeights,
    init_weights,
    load_weights,
    make_spec,
    save_weights,
    unf,
)
from optax_unf.equivariant.basis import basis
from optax_unf.equivariant.contract import tensors
from optax_unf.nn import NFN, UNF, InvariantPool, PositionalEncoding
from optax_unf.optimizer.meta_weights import check_fits


def small_spaces(axes=concat_axes, max_terms=60):
    """Spaces on which the layer compiles quickly."""
    return st.lists(axes(), min_size=1, max_size=2).filter(
        lambda space: count_terms([_names(b) for leaf in space for b in separate_axes(leaf)]) <= max_terms
    )


def _names(part):
    # With tied coefficients each fixed axis has a name of its own.
    return tuple(f"fixed {n}" if isinstance(atom, Fixed) else atom for n, atom in enumerate(part))


SKIP = [(Concat("a", "b"), "a"), ("b", Concat("a", Fixed(2)))]
FUSED = [("a", Concat(("b", "a"), ("b", "a"), "c")), ("a",)]
BOTH = [(Concat("a", "b"), Concat("b", "a"))]
PRODUCT = [((Fixed(2), Concat("a", "b")), "a"), ("b",)]
SPACES = {"skip": SKIP, "fused": FUSED, "both axes": BOTH, "in a product": PRODUCT}


# UNF.


@pytest.mark.slow
@settings(max_examples=6, deadline=None)
@given(small_spaces(), st.sampled_from(["full", "tied"]), st.integers(0, 2**31))
def test_unf_commutes_with_the_group(space, coefficients, seed):
    spec = make_concat_space(space)
    keys = jax.random.split(jax.random.key(seed), 3)
    layer, x = UNF(spec, 2, coefficients), random_features(spec, keys[0], 3)
    variables = randomize(jax.eval_shape(layer.init, keys[1], x), keys[1])
    g = spec.random_permutation(keys[2])
    assert_close(*both_orders(functools.partial(layer.apply, variables), spec)(g, x))


def entries(space):
    """For each entry of the separate leaves, where it is among those of the leaves with concatenated axes."""
    found, start = [], 0
    for axes in space:
        shape = tuple(map(size_of, axes))
        where = start + np.arange(math.prod(shape)).reshape(shape)
        found += [where[np.ix_(*part)].ravel() for part in positions(axes)]
        start += math.prod(shape)
    return np.concatenate(found)


@pytest.mark.slow
@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_unf_spans_what_it_spans_on_separate_leaves(space):
    together, separate = make_concat_space(space), make_separate_space(space)
    with jax.enable_x64(True):
        mine = stacked_layer_maps(UNF(together, 1, use_bias=False), together)
        theirs = stacked_layer_maps(UNF(separate, 1, use_bias=False), separate)
    order = entries(space)
    mine = mine.reshape(-1, len(order), len(order))[:, order][:, :, order].reshape(len(mine), -1)
    assert rank(mine) == rank(theirs) == rank(np.concatenate([mine, theirs]))


# Roles that the weights have seen: not all that the spaces have.
PLAIN = make_space([("a", "b"), ("b",), ("c", "c"), ("a", "b", "c"), ()])


@pytest.mark.slow
@settings(max_examples=6, deadline=None)
@given(small_spaces(brief_concat_axes), st.integers(0, 2**31))
def test_tied_weights_of_a_plain_space_give_what_they_give_on_separate_leaves(space, seed):
    together, separate = make_concat_space(space), make_separate_space(space)
    x = random_features(together, jax.random.key(seed), 2)
    plain = random_features(PLAIN, jax.random.key(0), 2)
    variables = randomize(jax.eval_shape(UNF(PLAIN, 3, "tied").init, jax.random.key(0), plain), jax.random.key(seed))
    with jax.enable_x64(True):
        x = {path: np.asarray(leaf, np.float64) for path, leaf in x.items()}
        mine = separate_features(space, jax.jit(UNF(together, 3, "tied").apply)(variables, x))
        theirs = jax.jit(UNF(separate, 3, "tied").apply)(variables, separate_features(space, x))
        assert_close(mine, theirs, 1e-12)


def test_each_block_is_a_tensor():
    found = tensors(make_concat_space(SKIP))
    assert [(t.path, t.names, t.sizes, t.positions) for t in found] == [
        ("leaf_0#0", (0, 0), (2, 2), 1),
        ("leaf_0#1", (1, 0), (3, 2), 1),
        ("leaf_1#0", (1, 0), (3, 2), 1),
        ("leaf_1#1", (1,), (3,), 2),
    ]


def test_large_fixed_parts_are_refused():
    spec = make_spec({"x": (Concat("a", None),)}, {"x": jnp.zeros(70)}, sizes={"a": 5})
    with pytest.raises(ValueError, match=r"at most 64 positions.*'x#1' with axes \(Concat\('a', None\),\) has 65"):
        UNF(spec, 1).init(jax.random.key(0), {"x": jnp.zeros((70, 1))})


# The other modules.


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_pool_of_separate_leaves(space):
    x = random_features(make_concat_space(space), jax.random.key(0), 2)
    mine = jax.jit(lambda x: InvariantPool(make_concat_space(space)).apply({}, x))(x)
    theirs = jax.jit(lambda x: InvariantPool(make_separate_space(space)).apply({}, x))(separate_features(space, x))
    # Contractions are in the order of names, which is not the same in both.
    assert_close(np.sort(mine), np.sort(theirs))


@pytest.mark.slow
@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_encoding_of_separate_leaves(space):
    x = random_features(make_concat_space(space), jax.random.key(0), 1)
    mine = PositionalEncoding(make_concat_space(space), ("a", "b")).apply({}, x)
    theirs = PositionalEncoding(make_separate_space(space), ("a", "b")).apply({}, separate_features(space, x))
    assert_close(separate_features(space, mine), theirs, 1e-6)


def test_encoding_counts_the_axes_of_each_block():
    spec = make_concat_space([(Concat("a", "b", "a"), "a")])
    PositionalEncoding(spec, ("a",), frequencies=2)
    with pytest.raises(ValueError, match=r"leaf 'leaf_0' .* has 2 axes 'a', and frequencies is 1"):
        PositionalEncoding(spec, ("a",), frequencies=1)


def test_nfn_and_algorithm_1_refuse_concatenated_axes():
    spec = make_concat_space([("a", "b"), (Concat("a", "b"),)])
    with pytest.raises(ValueError, match=r"no axis may be a Concat\. But leaf 'leaf_1' .* has 2 parts.*nn\.UNF"):
        NFN(spec, 1)
    with pytest.raises(ValueError, match=r"one part, but leaf 'leaf_1' .* has 2\. Make each part a leaf"):
        basis(spec)


# Weights.


@settings(max_examples=15, deadline=None)
@given(st.lists(concat_axes(), max_size=3))
def test_specs_come_back_from_files(tmp_path_factory, space):
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    config, spec = Architecture(head="none"), make_concat_space(space)
    weights = dataclasses.replace(init_weights(config, spec, jax.random.key(0)), spec=spec)
    save_weights(path, weights)
    assert load_weights(path).spec == spec


def weights_of(axes, shapes=((5, 6), (2, 3)), **sizes):
    tree = {"x": axes[0], "y": axes[1]}
    spec = make_spec(tree, {path: jnp.zeros(shape) for path, shape in zip("xy", shapes, strict=True)}, sizes=sizes)
    return MetaWeights({}, Architecture(head="unf"), spec)


def test_weights_fit_what_has_the_same_blocks_up_to_names():
    weights = weights_of([(Concat("a", "b"), (Fixed(2), "b")), ("a", "b")])
    check_fits(weights.spec, weights_of([(Concat("m", "n"), (None, "n")), ("m", "n")]).spec)


@pytest.mark.parametrize(
    "axes",
    [
        [(Concat("b", "a"), (None, "b")), ("a", "b")],
        [(Concat("a", "b"), ("b", None)), ("a", "b")],
        [(Concat("a", Fixed(3)), (None, "b")), ("a", "b")],
        [(Concat("a", "c"), (None, "b")), ("a", "b")],
        [(Concat("a", "a", Fixed(1)), (None, "b")), ("a", "b")],
        [("c", (None, "b")), ("a", "b")],
        [(Concat("a", "b"), Concat("b", "b")), ("a", "b")],
    ],
)
def test_weights_do_not_fit_other_blocks(axes):
    weights = weights_of([(Concat("a", "b"), (Fixed(2), "b")), ("a", "b")])
    with pytest.raises(ValueError, match=r"differs at leaf 'x': the weights want shape \(5, 6\) .*Concat\('a', 'b'\)"):
        check_fits(weights.spec, weights_of(axes).spec)


def test_sizes_of_parts_are_compared():
    axes = [(Concat("a", "b"), "c"), ("c", "c")]
    shapes = ((5, 3), (3, 3))
    with pytest.raises(ValueError, match=r"\('a', 2\), \('b', 3\).*, the parameters have .*\('a', 1\), \('b', 4\)"):
        check_fits(weights_of(axes, shapes, a=2).spec, weights_of(axes, shapes, a=1).spec)


# The optimizer.


@pytest.mark.slow
@pytest.mark.parametrize("coefficients", ["full", "tied"])
def test_the_optimizer_commutes_with_the_group(coefficients):
    spec = make_concat_space(SKIP)
    config = Architecture(hidden_channels=4, hidden_layers=1, coefficients=coefficients)
    init = functools.partial(init_weights, config, spec, scalars=InitialScalars(beta=1.0))
    weights = jax.jit(init)(jax.random.key(0))
    tx = unf(weights, spec=spec)
    params, grads = (jax.tree.map(lambda x: x[..., 0], random_features(spec, jax.random.key(n), 1)) for n in range(2))
    g = spec.random_permutation(jax.random.key(3))

    @jax.jit
    def step(params, grads):
        return tx.update(grads, tx.init(params), params)[0]

    once, twice = spec.permute(g, step(params, grads)), step(spec.permute(g, params), spec.permute(g, grads))
    assert_close(once, twice, 1e-4)
    assert all(jnp.isfinite(x).all() and x.any() for x in jax.tree.leaves(once))
