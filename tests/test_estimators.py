"""Gradient estimators against closed-form meta-gradients."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_unf.meta import PES, Backprop
from optax_unf.meta.inner import unroll

HORIZON = 12
THETA = jnp.array([0.3, -0.2])


class Walk(NamedTuple):
    x: jax.Array
    noise: jax.Array
    count: jax.Array


class Drift:
    """x_{t+1} = x_t + theta_0 + theta_1 z_t with z_t given, loss x_t^2 / 2: quadratic in theta, so ES is exact."""

    def start(self, theta, key):
        del theta
        x_key, z_key = jax.random.split(key)
        return Walk(jax.random.normal(x_key) + 1.0, jax.random.normal(z_key, (HORIZON,)) + 0.5, jnp.array(0))

    def step(self, theta, run):
        x = run.x + theta[0] + theta[1] * run.noise[run.count]
        return Walk(x, run.noise, run.count + 1), 0.5 * run.x**2


def closed_form(objective):
    """The expected gradient, by hand: x_t = x_0 + t theta_0 + theta_1 (z_0 + ... + z_{t-1})."""
    t = np.arange(HORIZON)
    # E[x_0] = 1, E[z] = 1/2, Var[z] = 1, all independent.
    mean = 1.0 + t * float(THETA[0]) + 0.5 * t * float(THETA[1])
    grads = np.stack([mean * t, mean * 0.5 * t + float(THETA[1]) * t], axis=1)
    return grads[-1] if objective == "final" else grads.mean(0)


def mean_and_error(estimator, steps=6000, burn_in=50):
    problem = Drift()

    def step(state, key):
        grad, state, _ = estimator.estimate(problem, HORIZON, THETA, state, key)
        return state, grad

    @jax.jit
    def run(key):
        init_key, scan_key = jax.random.split(key)
        state = estimator.init(problem, HORIZON, THETA, init_key)
        return jax.lax.scan(step, state, jax.random.split(scan_key, steps))[1]

    grads = np.asarray(run(jax.random.key(0)), np.float64)[burn_in:]
    # Estimates of one run are correlated: take the error from means of blocks much longer than a run.
    blocks = grads[: len(grads) // 50 * 50].reshape(-1, 50, 2).mean(1)
    return blocks.mean(0), blocks.std(0, ddof=1) / np.sqrt(len(blocks))


@pytest.mark.parametrize("objective", ["final", "mean"])
@pytest.mark.parametrize("truncation", [3, 12])
def test_pes_agrees_with_the_closed_form_across_restarts(objective, truncation):
    estimator = PES(pairs=32, truncation=truncation, sigma=0.1, objective=objective, final_steps=1, max_loss=1e6)
    mean, error = mean_and_error(estimator)
    expected = closed_form(objective)
    assert np.all(error < 0.1 * np.abs(expected).max())  # the test can tell
    np.testing.assert_array_less(np.abs(mean - expected), 4 * error)


def test_truncated_es_is_biased():
    estimator = PES(pairs=32, truncation=3, sigma=0.1, objective="mean", max_loss=1e6, persistent=False)
    mean, error = mean_and_error(estimator)
    assert np.any(np.abs(mean - closed_form("mean")) > 10 * error)


def test_backprop_through_whole_runs_agrees_with_the_closed_form():
    mean, error = mean_and_error(Backprop(runs=32, truncation=HORIZON, clip_norm=1e6))
    np.testing.assert_array_less(np.abs(mean - closed_form("mean")), 4 * error)


def test_backprop_through_short_truncations_is_biased():
    mean, error = mean_and_error(Backprop(runs=32, truncation=3, clip_norm=1e6))
    assert np.any(np.abs(mean - closed_form("mean")) > 10 * error)


def test_rematerialized_unroll_has_the_same_gradient():
    problem, run = Drift(), Drift().start(THETA, jax.random.key(1))

    def loss(theta, rematerialize):
        return unroll(problem, theta, run, 5, rematerialize=rematerialize)[1].mean()

    plain, again = (jax.grad(loss)(THETA, flag) for flag in (False, True))
    np.testing.assert_allclose(plain, again, rtol=1e-6)


def test_particles_start_at_staggered_offsets():
    estimator = PES(pairs=64, truncation=3)
    remaining = estimator.init(Drift(), HORIZON, THETA, jax.random.key(0)).remaining
    assert set(np.asarray(remaining).tolist()) == {3, 6, 9, 12}


def test_antithetic_particles_share_everything_but_theta():
    class Deaf(Drift):
        def step(self, theta, run):
            return super().step(0.0 * theta, run)

    estimator = PES(pairs=4, truncation=3)
    state = estimator.init(Deaf(), HORIZON, THETA, jax.random.key(0))
    for n in range(10):
        grad, state, _ = estimator.estimate(Deaf(), HORIZON, THETA, state, jax.random.key(n))
        np.testing.assert_array_equal(grad, 0.0)


class Exploding(Drift):
    def step(self, theta, run):
        run, loss = super().step(theta, run)
        return run, jnp.where((run.count > 4) & (run.noise[0] > 0.5), jnp.nan, loss)


@pytest.mark.parametrize("estimator", [PES(pairs=16, truncation=3), Backprop(runs=16, truncation=3)])
def test_diverged_runs_are_counted_restarted_and_do_not_poison_the_estimate(estimator):
    problem = Exploding()
    state = estimator.init(problem, HORIZON, THETA, jax.random.key(0))
    diverged = 0
    for n in range(8):
        grad, state, metrics = estimator.estimate(problem, HORIZON, THETA, state, jax.random.key(n))
        assert np.isfinite(grad).all()
        assert np.isfinite(metrics["loss"])
        diverged += int(metrics["diverged"])
        # A run that diverged has started anew: none is past the step that explodes.
        exploding = np.asarray(state.runs.noise[:, 0] > 0.5)
        assert np.all(np.asarray(state.runs.count)[exploding] <= 4)
    assert diverged > 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PES(pairs=0), "at least one pair"),
        (lambda: PES(sigma=0.0), "sigma must be positive"),
        (lambda: PES(sigma=float("nan")), "sigma must be positive"),
        (lambda: PES(objective="best"), "objective must be"),
        (lambda: Backprop(runs=0), "at least one inner run"),
    ],
)
def test_settings_that_cannot_work_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("truncation", [0, 5, 24])
def test_truncations_that_do_not_divide_the_horizon_are_refused(truncation):
    with pytest.raises(ValueError, match="divide"):
        PES(truncation=truncation).init(Drift(), HORIZON, THETA, jax.random.key(0))
