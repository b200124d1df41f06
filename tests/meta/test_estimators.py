"""Gradient estimators against closed-form meta-gradients."""

import dataclasses
import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_unf.meta import NRES, PES, Backprop, FullES, TruncatedES, inner
from optax_unf.meta.inner import unroll

HORIZON = 12
THETA = jnp.array([0.3, -0.2])
# One loss, not the mean of several, is the loss at the end; no loss is clipped.
EXACT = {"final_steps": 1, "max_loss": 1e6}
ALL = [
    PES(pairs=16, truncation=3),
    NRES(pairs=16, truncation=3),
    TruncatedES(pairs=16, truncation=3),
    FullES(pairs=16),
    Backprop(runs=16, truncation=3),
]
by_name = pytest.mark.parametrize("estimator", ALL, ids=lambda estimator: type(estimator).__name__)


def jitted(estimator, problem):
    """The estimate as a function of theta, the state and a key, compiled once."""
    return jax.jit(functools.partial(estimator.estimate, problem, HORIZON))


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


def closed_form(objective, truncation=HORIZON, skip=0):
    """The expected gradient, by hand: x_t = x_0 + t theta_0 + theta_1 (z_0 + ... + z_{t-1}).

    With a truncation, theta acts on x_t through the steps since the truncation's start only. The first steps may be
    left out.
    """
    t = np.arange(skip, HORIZON)
    since = (t - skip) % truncation
    # E[x_0] = 1, E[z] = 1/2, Var[z] = 1, all independent.
    mean = 1.0 + t * float(THETA[0]) + 0.5 * t * float(THETA[1])
    grads = np.stack([mean * since, mean * 0.5 * since + float(THETA[1]) * since], axis=1)
    return grads[truncation - 1 :: truncation].sum(0) if objective == "final" else grads.mean(0)


def mean_and_error(estimator, problem, theta, steps=4000, burn_in=50):
    def step(state, key):
        grad, state, _ = estimator.estimate(problem, HORIZON, theta, state, key)
        return state, grad

    @jax.jit
    def run(key):
        init_key, scan_key = jax.random.split(key)
        state = estimator.init(problem, HORIZON, theta, init_key)
        return jax.lax.scan(step, state, jax.random.split(scan_key, steps))[1]

    grads = np.asarray(run(jax.random.key(0)), np.float64)[burn_in:]
    # Estimates of one run are correlated: take the error from means of blocks much longer than a run.
    blocks = grads[: len(grads) // 50 * 50].reshape(-1, 50, theta.size).mean(1)
    return blocks.mean(0), blocks.std(0, ddof=1) / np.sqrt(len(blocks))


def check_mean(estimator, problem, theta, expected):
    mean, error = mean_and_error(estimator, problem, theta)
    assert np.all(error < 0.1 * np.abs(expected).max())  # the test can tell
    np.testing.assert_array_less(np.abs(mean - expected), 4 * error)
    return error


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["final", "mean"])
@pytest.mark.parametrize(
    "make",
    [
        lambda **settings: PES(truncation=3, **settings),
        lambda **settings: NRES(truncation=3, **settings),
        lambda **settings: FullES(**settings),
    ],
    ids=["PES", "NRES", "FullES"],
)
def test_unbiased_estimators_agree_with_the_closed_form_across_restarts(make, objective):
    estimator = make(pairs=32, sigma=0.1, objective=objective, **EXACT)
    check_mean(estimator, Drift(), THETA, closed_form(objective))


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["final", "mean"])
def test_truncated_es_has_the_bias_of_the_closed_form(objective):
    estimator = TruncatedES(pairs=32, truncation=3, sigma=0.1, objective=objective, **EXACT)
    error = check_mean(estimator, Drift(), THETA, closed_form(objective, truncation=3))
    assert np.any(np.abs(closed_form(objective, truncation=3) - closed_form(objective)) > 10 * error)


@pytest.mark.slow
@pytest.mark.parametrize(("truncation", "skip"), [(3, 0), (HORIZON, 0), (3, 6), (7, 5)])
def test_backprop_agrees_with_the_closed_form(truncation, skip):
    estimator = Backprop(runs=32, truncation=truncation, clip_norm=1e6, skip=skip)
    check_mean(estimator, Drift(), THETA, closed_form("mean", truncation, skip))


@pytest.mark.slow
@pytest.mark.parametrize("truncation", [3, HORIZON])
def test_backprop_of_the_last_loss_agrees_with_the_closed_form(truncation):
    estimator = Backprop(runs=32, truncation=truncation, clip_norm=1e6, final_steps=1)
    check_mean(estimator, Drift(), THETA, closed_form("final", truncation) / (HORIZON // truncation))


class Cube:
    """x_{t+1} = x_t + theta from x_0 = 1, loss x_t^3: not quadratic, so that smoothing by the noise shows."""

    def start(self, theta, key):
        del key
        return jnp.ones_like(theta[0])

    def step(self, theta, run):
        return run + theta[0], run**3


def smoothed(kind, truncation, sigma, theta):
    """By hand, at the last step t: E[x_t] = 1 + t theta, and E[x_t^2] has the variance of what noise adds up to x_t.

    Noise drawn for the whole run adds t eps; noise drawn for each truncation adds a multiple of each truncation's own.
    """
    t = HORIZON - 1
    own = np.array([truncation] * (t // truncation) + [t % truncation])
    variance = sigma**2 * (t**2 if kind in (NRES, FullES) else (own**2).sum())
    slope = 3 * ((1 + t * theta) ** 2 + variance)
    if kind is not TruncatedES:
        return t * slope
    # The sum over truncations of what their own noise does to their last step.
    ends = np.arange(truncation - 1, HORIZON, truncation)
    before = sigma**2 * truncation**2 * np.arange(len(ends))
    second_moment = (1 + ends * theta) ** 2 + before + sigma**2 * (truncation - 1) ** 2
    return ((truncation - 1) * 3 * second_moment).sum()


@pytest.mark.parametrize("kind", [PES, NRES, TruncatedES, FullES])
def test_estimates_average_to_the_gradient_of_the_smoothed_objective(kind):
    sigma, theta, truncation = 0.3, 0.3, 3
    settings = {} if kind is FullES else {"truncation": truncation}
    estimator = kind(pairs=64, sigma=sigma, **settings, **EXACT)
    error = check_mean(estimator, Cube(), jnp.array([theta]), np.array([smoothed(kind, truncation, sigma, theta)]))
    others = {smoothed(other, truncation, sigma, theta) for other in (PES, NRES, TruncatedES)}
    assert np.diff(sorted(others)).min() > 8 * error  # the test can tell one from the other


@pytest.mark.slow
def test_backprop_is_the_gradient_of_the_truncated_objective():
    problem, estimator = Drift(), Backprop(runs=4, truncation=3, clip_norm=1e6)
    state = estimator.init(problem, HORIZON, THETA, jax.random.key(0))

    @jax.jit
    def loss(theta):
        total = 0.0
        for n in range(4):
            run = jax.tree.map(lambda x: x[n], state.runs)  # noqa: B023
            for _ in range(3):
                run, one = problem.step(theta, run)
                total += one
        return total / 12

    grad, _, metrics = estimator.estimate(problem, HORIZON, THETA, state, jax.random.key(1))
    np.testing.assert_allclose(grad, jax.grad(loss)(THETA), rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], loss(THETA), rtol=1e-5)


@pytest.mark.parametrize("kept", [2000, 4])
def test_rematerialized_unroll_has_the_same_gradient(kept, monkeypatch):
    monkeypatch.setattr(inner, "_KEPT_RUNS", kept)
    problem, run = Drift(), Drift().start(THETA, jax.random.key(1))

    def loss(theta, rematerialize):
        losses = unroll(problem, theta, run, HORIZON, rematerialize=rematerialize)[1]
        return losses @ jnp.arange(HORIZON, dtype=losses.dtype), losses

    (plain, losses), (again, same) = (jax.grad(loss, has_aux=True)(THETA, flag) for flag in (False, True))
    np.testing.assert_allclose(plain, again, rtol=1e-6)
    np.testing.assert_array_equal(losses, same)


def whole_run(estimator, seed):
    """The estimates of all truncations of a run, and the states before them."""
    state = estimator.init(Drift(), HORIZON, THETA, jax.random.key(seed))
    remaining = jnp.full_like(state.particles.remaining, HORIZON)
    state = state._replace(particles=state.particles._replace(remaining=remaining))
    states, grads = [], []
    estimate = jitted(estimator, Drift())
    for n in range(HORIZON // estimator.truncation + 1):
        states.append(state)
        grad, state, _ = estimate(THETA, state, jax.random.key(n))
        grads.append(grad)
    return np.stack(grads), states


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["final", "mean"])
def test_estimates_of_nres_over_a_run_average_to_that_of_the_whole_run(objective):
    estimator = NRES(pairs=2, truncation=3, sigma=0.1, objective=objective, **EXACT)
    grads, states = whole_run(estimator, seed=3)
    start, eps = states[0].particles.runs, np.asarray(states[0].eps, np.float64)
    x0, z = np.asarray(start.x, np.float64)[::2], np.asarray(start.noise, np.float64)[::2]
    # Sums of z before step t, and the losses at all steps of both particles.
    sums = np.concatenate([np.zeros((2, 1)), np.cumsum(z, axis=1)[:, :-1]], axis=1)
    theta = np.asarray(THETA, np.float64)

    def outer_loss(theta):
        losses = 0.5 * (x0[:, None] + np.arange(HORIZON) * theta[:, :1] + theta[:, 1:] * sums) ** 2
        return losses[:, -1] if objective == "final" else losses.mean(1)

    slope = (outer_loss(theta + eps) - outer_loss(theta - eps)) / (2 * 0.1**2)
    np.testing.assert_allclose(grads[:-1].mean(0), (slope[:, None] * eps).mean(0), rtol=1e-3)


def test_nres_keeps_its_perturbations_to_the_end_of_a_run():
    eps = [np.asarray(state.eps) for state in whole_run(NRES(pairs=2, truncation=3), seed=0)[1]]
    for later in eps[1:4]:
        np.testing.assert_array_equal(later, eps[0])
    assert np.all(eps[4] != eps[0])


def test_pes_adds_its_perturbations_up_to_the_end_of_a_run():
    xi = [np.asarray(state.xi) for state in whole_run(PES(pairs=2, truncation=3), seed=0)[1]]
    assert np.all(xi[0] == 0)
    assert all(np.all(later != earlier) for earlier, later in itertools.pairwise(xi))
    assert np.all(xi[4] == 0)


def test_runs_of_truncated_es_set_out_from_one_state():
    # Were the states of a pair apart, their losses would differ before theta has acted.
    estimator = TruncatedES(pairs=4, truncation=1, objective="mean")
    state = estimator.init(Drift(), HORIZON, THETA, jax.random.key(0))
    estimate = jitted(estimator, Drift())
    for n in range(5):
        grad, state, _ = estimate(THETA, state, jax.random.key(n))
        np.testing.assert_allclose(grad, 0.0, atol=1e-3)  # were anything else different, it would be above 1


@pytest.mark.parametrize("kind", [PES, NRES, TruncatedES])
def test_particles_start_at_staggered_offsets(kind):
    state = kind(pairs=64, truncation=3).init(Drift(), HORIZON, THETA, jax.random.key(0))
    remaining = state.remaining if kind is TruncatedES else state.particles.remaining
    assert set(np.asarray(remaining).tolist()) == {3, 6, 9, 12}


@pytest.mark.slow
@by_name
def test_antithetic_particles_share_everything_but_theta(estimator):
    class Deaf(Drift):
        def step(self, theta, run):
            return super().step(0.0 * theta, run)

    state = estimator.init(Deaf(), HORIZON, THETA, jax.random.key(0))
    estimate = jitted(estimator, Deaf())
    for n in range(5):
        grad, state, _ = estimate(THETA, state, jax.random.key(n))
        np.testing.assert_allclose(grad, 0.0, atol=1e-3)  # were anything else different, it would be above 1


class Exploding(Drift):
    def step(self, theta, run):
        run, loss = super().step(theta, run)
        return run, jnp.where((run.count > 4) & (run.noise[0] > 0.5), jnp.nan, loss)


@pytest.mark.slow
@by_name
def test_diverged_runs_are_counted_restarted_and_do_not_poison_the_estimate(estimator):
    problem = Exploding()
    state = estimator.init(problem, HORIZON, THETA, jax.random.key(0))
    diverged = 0
    estimate = jitted(estimator, problem)
    for n in range(8):
        grad, state, metrics = estimate(THETA, state, jax.random.key(n))
        assert np.isfinite(grad).all()
        assert np.isfinite(metrics["loss"])
        diverged += int(metrics["diverged"])
        # A run that diverged has started anew: none is past the step that explodes.
        for walk in jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, Walk)):
            if isinstance(walk, Walk):
                exploding = np.asarray(walk.noise[:, 0] > 0.5)
                assert np.all(np.asarray(walk.count)[exploding] <= 4)
    assert diverged > 0


def test_backprop_leads_away_from_where_all_runs_diverge():
    class Bowl(Drift):
        """Gradient descent on x**2, which diverges at rates above 1."""

        def step(self, theta, run):
            return run._replace(x=run.x - 2 * theta[0] * run.x, count=run.count + 1), run.x**2

    estimator, theta = Backprop(runs=4, truncation=12, max_loss=1e3), jnp.array([3.0, 0.0])
    state = estimator.init(Bowl(), 12, theta, jax.random.key(0))
    for n in range(3):
        grad, state, metrics = estimator.estimate(Bowl(), 12, theta, state, jax.random.key(n))
        assert metrics["diverged"] == 4
        assert np.isfinite(grad).all()
        assert grad[0] > 0.1


@pytest.mark.parametrize("kind", [PES, NRES, TruncatedES, FullES])
def test_losses_count_as_at_most_the_largest(kind):
    class Step(Drift):
        def step(self, theta, run):
            run, _ = super().step(theta, run)
            return run, jnp.where(theta[0] > THETA[0], 1e6, 1.0)

    settings = {"pairs": 1, "sigma": 0.1, "objective": "mean", "max_loss": 3.0}
    estimator = kind(**settings) if kind is FullES else kind(truncation=HORIZON, **settings)
    state = estimator.init(Step(), HORIZON, THETA, jax.random.key(0))
    grad, _, metrics = estimator.estimate(Step(), HORIZON, THETA, state, jax.random.key(1))
    # One particle of the pair has loss 3, the other 1.
    assert float(metrics["loss"]) == 2.0
    assert 0 < float(grad[0]) < 10 * 0.1 * (3 - 1) / (2 * 0.1**2)


@pytest.mark.slow
@by_name
def test_inner_steps_are_those_that_are_taken(estimator):
    class Counting(Drift):
        taken = 0

        def count(self, _):
            self.taken += 1

        def step(self, theta, run):
            jax.debug.callback(self.count, run.x)
            return super().step(theta, run)

    problem = Counting()
    state = estimator.init(problem, HORIZON, THETA, jax.random.key(0))
    jax.block_until_ready(jitted(estimator, problem)(THETA, state, jax.random.key(0)))
    jax.effects_barrier()
    # Backpropagation takes each step again when it comes back.
    times = 2 if isinstance(estimator, Backprop) else 1
    assert problem.taken == times * estimator.inner_steps(HORIZON)


@by_name
def test_estimators_are_made_of_what_json_holds(estimator):
    settings = dataclasses.asdict(estimator)
    assert all(isinstance(value, int | float | str | None) for value in settings.values())
    assert type(estimator)(**settings) == estimator


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PES(pairs=0), "PES needs at least one pair"),
        (lambda: FullES(pairs=0), "FullES needs at least one pair"),
        (lambda: NRES(sigma=0.0), "sigma must be positive"),
        (lambda: PES(sigma=float("nan")), "sigma must be positive"),
        (lambda: TruncatedES(objective="best"), "objective must be"),
        (lambda: Backprop(runs=0), "at least one inner run"),
    ],
)
def test_settings_that_cannot_work_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(("skip", "message"), [(-1, "at least 0"), (HORIZON, "below the horizon"), (4, "divide")])
def test_a_skip_that_leaves_no_whole_truncations_is_refused(skip, message):
    with pytest.raises(ValueError, match=message):
        Backprop(truncation=3, skip=skip).check(HORIZON)


@pytest.mark.parametrize("final_steps", [0, 4])
def test_more_final_steps_than_the_truncation_has_are_refused(final_steps):
    with pytest.raises(ValueError, match="from 1 to the truncation, 3, but is"):
        Backprop(truncation=3, final_steps=final_steps).check(HORIZON)


@pytest.mark.parametrize("truncation", [0, 5, 24])
@pytest.mark.parametrize("kind", [PES, NRES, TruncatedES, Backprop])
def test_truncations_that_do_not_divide_the_horizon_are_refused(kind, truncation):
    with pytest.raises(ValueError, match="divide"):
        kind(truncation=truncation).init(Drift(), HORIZON, THETA, jax.random.key(0))
