"""Full coefficients from tied ones, and weights that begin where others ended."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spaces import make_space, random_features, random_spaces, randomize

from optax_unf import Architecture, init_weights, load_weights, make_spec, transfer_weights
from optax_unf.equivariant.untie import untie
from optax_unf.nn import UNF

KEY = jax.random.key(0)


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(
    axes=random_spaces(max_leaves=3, max_rank=3, max_terms=60),
    channels=st.sampled_from([1, 3]),  # products with one column are made another way
    seed=st.integers(0, 2**32 - 1),
)
def test_untied_layer_is_the_tied_one(axes, channels, seed):
    spec, key = make_space(axes), jax.random.key(seed)
    x = random_features(spec, key, 2)
    tied, full = (UNF(spec, channels, coefficients) for coefficients in ("tied", "full"))
    params = randomize(jax.eval_shape(tied.init, key, x)["params"], key)
    untied = untie(params, spec)
    wanted = jax.eval_shape(full.init, key, x)["params"]
    assert jax.tree.map(np.shape, untied) == jax.tree.map(np.shape, wanted)
    y = jax.jit(tied.apply)({"params": params}, x)
    chex.assert_trees_all_close(jax.jit(full.apply)({"params": untied}, x), y, rtol=1e-3, atol=1e-3)


def test_untying_needs_named_axes():
    spec = make_spec({"w": ("a", None)}, {"w": np.ones((3, 2))})
    tied = load_weights("mlp-fashion-mnist-tied").theta.network[-1]
    with pytest.raises(ValueError, match="no axis is fixed"):
        untie(tied, spec)


SPEC = make_spec({"w": ("out", "in"), "b": ("out",)}, {"w": np.ones((3, 2)), "b": np.ones(3)})


def test_a_new_head_on_an_old_trunk():
    old = load_weights("mlp-fashion-mnist-deepsets")
    new = transfer_weights(old, Architecture(head="nfn"), SPEC, KEY)
    fresh = init_weights(Architecture(head="nfn"), SPEC, KEY)
    chex.assert_trees_all_equal(new.theta.network[1], old.theta.network[1])
    chex.assert_trees_all_equal(new.theta.network[-1], fresh.theta.network[-1])
    assert new.theta.scalars.log_alpha == old.theta.scalars.log_alpha
    assert new.theta.scalars.beta == fresh.theta.scalars.beta


def test_the_same_architecture_is_carried_over_whole():
    old = load_weights("mlp-fashion-mnist-deepsets")
    chex.assert_trees_all_equal(transfer_weights(old, old.architecture, SPEC, KEY), old)


def test_another_trunk():
    with pytest.raises(ValueError, match=r"weights have \(32, 3, \(\), False\).*wanted has \(16, 3, \(\), False\)"):
        transfer_weights(load_weights("mlp-fashion-mnist-tied"), Architecture(hidden_channels=16), SPEC, KEY)


def test_another_step_size_leaves_the_learned_part_of_the_step():
    old = load_weights("mlp-fashion-mnist-deepsets")
    new = transfer_weights(old, old.architecture, SPEC, KEY, alpha=0.01)
    np.testing.assert_allclose(new.alpha, 0.01, rtol=1e-6)
    np.testing.assert_allclose(new.alpha * new.theta.scalars.beta, old.alpha * old.theta.scalars.beta, rtol=1e-5)


def test_less_of_the_learned_part_of_the_step():
    old = load_weights("mlp-fashion-mnist-deepsets")
    new = transfer_weights(old, old.architecture, SPEC, KEY, alpha=0.5, learned=0.2)
    np.testing.assert_allclose(new.alpha * new.theta.scalars.beta, 0.2 * old.alpha * old.theta.scalars.beta, rtol=1e-5)


def test_another_preconditioner_needs_a_step_size():
    old = load_weights("mlp-fashion-mnist-deepsets")
    config = Architecture(head="deepsets", preconditioner="rms")
    with pytest.raises(ValueError, match=r"preconditioner=None.*alpha must be given"):
        transfer_weights(old, config, SPEC, KEY)
    new = transfer_weights(old, config, SPEC, KEY, alpha=1e-3)
    assert new.architecture.preconditioner == "rms"
    chex.assert_trees_all_equal(new.theta.network, old.theta.network)


def test_a_step_size_below_zero():
    old = load_weights("mlp-fashion-mnist-deepsets")
    with pytest.raises(ValueError, match=r"alpha must be positive, but is -0\.1"):
        transfer_weights(old, old.architecture, SPEC, KEY, alpha=-0.1)


def test_a_warm_up_is_begun_and_carried_over():
    old = load_weights("mlp-fashion-mnist-deepsets")
    config = Architecture(head="deepsets", step_warmup=True)
    warm = transfer_weights(old, config, SPEC, KEY)
    chex.assert_trees_all_equal(warm.theta.with_scalars(log_step_warmup=None), old.theta)
    np.testing.assert_allclose(warm.theta.scalars.log_step_warmup, np.log(100), rtol=1e-6)
    longer = dataclasses.replace(warm, theta=warm.theta.with_scalars(log_step_warmup=jnp.float32(5.5)))
    chex.assert_trees_all_equal(transfer_weights(longer, config, SPEC, KEY).theta, longer.theta)
    with pytest.raises(ValueError, match=r"have a warm-up.*step_warmup=True"):
        transfer_weights(warm, old.architecture, SPEC, KEY)


def test_a_tree_of_names_is_no_spec():
    with pytest.raises(TypeError, match="must be a PermutationSpec, but is of type dict"):
        transfer_weights(load_weights("mlp-fashion-mnist-tied"), Architecture(), {"w": ("out", "in")}, KEY)
