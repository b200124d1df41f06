"""The scalars of Eq. 31 at a rate of their own."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from resumable_run import Quadratic

from optax_unf import Architecture, init_weights
from optax_unf.meta import (
    NRES,
    PES,
    Backprop,
    FullES,
    MetaTrainConfig,
    Stage,
    learned_training,
    meta_train,
    training_losses,
)
from optax_unf.meta.scalars import decode, encode, with_positive_beta
from optax_unf.tasks import task_spec

KEY = jax.random.key(0)
SMALL = Architecture(hidden_channels=4, hidden_layers=1)
SGDM = Architecture(head="none")


def theta_with(beta):
    return init_weights(SMALL, task_spec(Quadratic()), KEY).theta.with_scalars(beta=jnp.float32(beta))


@pytest.mark.parametrize("beta", [0.5, -0.5])
def test_beta_above_zero_in_the_same_optimizer(beta):
    theta = theta_with(beta)
    problem, keys = learned_training(SMALL, Quadratic()), jax.random.split(KEY, 2)
    train = jax.jit(lambda theta: training_losses(problem, theta, keys, 9))
    positive = with_positive_beta(theta)
    losses = [train(x) for x in (theta, positive, decode(encode(positive)))]
    assert positive.scalars.beta == 0.5
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-6)
    np.testing.assert_allclose(losses[2], losses[0], rtol=1e-4)


def test_sgd_with_momentum_has_no_beta():
    theta = init_weights(SGDM, task_spec(Quadratic()), KEY).theta
    for same in (with_positive_beta(theta), encode(theta), decode(theta)):
        chex.assert_trees_all_equal(same, theta)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("estimator", "beta"), [(Backprop(runs=2, truncation=5), -0.02), (PES(pairs=2, truncation=5), 0.02)]
)
def test_the_first_step_goes_as_far_as_each_rate(estimator, beta):
    # Adam's first step has the size of its rate in every coordinate with a gradient.
    stage = Stage(estimator, steps=1, learning_rate=1e-4, scalar_rate=0.1)
    config = MetaTrainConfig((stage,), horizon=20, evaluate_runs=1)
    start = dataclasses.replace(init_weights(SMALL, task_spec(Quadratic()), KEY), theta=theta_with(beta))
    last = meta_train(SMALL, Quadratic(), config, KEY, weights=start, progress=False).last.theta
    before = with_positive_beta(start.theta)
    last_scalars, before_scalars = last.scalars, before.scalars
    moved = [getattr(last_scalars, name) - getattr(before_scalars, name) for name in ("log_alpha", "logit_gamma_0")]
    moved.append(jnp.log(last_scalars.beta / before_scalars.beta))
    np.testing.assert_allclose(np.abs(moved), 0.1, rtol=1e-3)
    network = optax.tree.sub(last.network, before.network)
    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(network)) == pytest.approx(1e-4, rel=1e-2)


def test_sgd_with_momentum_has_the_rate_of_scalars():
    config = MetaTrainConfig(
        (Stage(Backprop(runs=2, truncation=5), 1, 1e-4, scalar_rate=0.1),), horizon=20, evaluate_runs=1
    )
    start = init_weights(SGDM, task_spec(Quadratic()), KEY)
    last = meta_train(SGDM, Quadratic(), config, KEY, weights=start, progress=False).last
    np.testing.assert_allclose(abs(jnp.log(last.alpha / start.alpha)), 0.1, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "estimator", [Backprop(runs=2, truncation=5), NRES(pairs=2, truncation=5, sigma=0.1), FullES(pairs=2, sigma=0.1)]
)
def test_scalars_alone_are_trained(estimator):
    stage = Stage(estimator, steps=1, learning_rate=0.1, trained="scalars")
    config = MetaTrainConfig((stage,), horizon=20, evaluate_runs=1)
    start = dataclasses.replace(init_weights(SMALL, task_spec(Quadratic()), KEY), theta=theta_with(0.02))
    last = meta_train(SMALL, Quadratic(), config, KEY, weights=start, progress=False).last.theta
    chex.assert_trees_all_equal(last.network, start.theta.network)
    moved = [getattr(last.scalars, n) - getattr(start.theta.scalars, n) for n in ("log_alpha", "logit_gamma_0")]
    np.testing.assert_allclose(np.abs([*moved, jnp.log(last.scalars.beta / 0.02)]), 0.1, rtol=1e-3)


@pytest.mark.slow
def test_evolution_of_the_scalars_lowers_the_final_loss():
    stage = Stage(FullES(pairs=8, sigma=0.1), steps=20, learning_rate=0.1, trained="scalars")
    config = MetaTrainConfig((stage,), horizon=20, evaluate_every=10, evaluate_runs=8)
    theta = theta_with(0.02).with_scalars(log_alpha=jnp.log(0.01))
    start = dataclasses.replace(init_weights(SMALL, task_spec(Quadratic()), KEY), theta=theta)
    last = meta_train(SMALL, Quadratic(), config, KEY, weights=start, progress=False).last.theta
    problem, keys = learned_training(SMALL, Quadratic()), jax.random.split(jax.random.key(1), 16)
    before, after = (training_losses(problem, x, keys, 20)[:, -1].mean() for x in (theta, last))
    assert after < 0.7 * before
