import itertools
import math

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from optax_unf.compare.speed import CAP, final_loss, geometric_mean, grid, smoothed, speed_up

HORIZON = 2000


def _losses(speed: float, noise: float = 0.0, seed: int = 0, horizon: int = HORIZON) -> np.ndarray:
    """The losses of an optimizer whose excess loss falls as a power of the number of steps, `speed` times as fast."""
    steps = np.arange(horizon)
    clean = 0.5 + 2.0 * (1 + speed * steps / 20) ** -0.7
    return clean + noise * np.random.default_rng(seed).normal(size=horizon)


def _speed_up(losses: np.ndarray, baseline: np.ndarray) -> float:
    return speed_up(smoothed(losses), smoothed(baseline), len(losses))


@given(st.integers(0, 2**32 - 1), st.floats(0, 0.5))
def test_a_curve_against_itself_gives_exactly_one(seed, noise):
    losses = _losses(1.0, noise, seed)
    assert _speed_up(losses, losses) == 1.0


@given(st.floats(1.0, 8.0))
def test_a_curve_that_is_so_many_times_as_fast_gives_that_and_swapped_its_inverse(speed):
    fast, slow = _losses(speed), _losses(1.0)
    assert _speed_up(fast, slow) == pytest.approx(speed, rel=0.03)
    assert _speed_up(slow, fast) == pytest.approx(1 / _speed_up(fast, slow), rel=1e-9)


@given(st.integers(0, 2**32 - 1))
def test_noise_changes_it_by_less_than_five_percent_in_the_mean_over_seeds(seed):
    clean = _speed_up(_losses(2.0), _losses(1.0))
    noisy = [_speed_up(_losses(2.0, 0.01, seed + i), _losses(1.0, 0.01, seed + 1000 + i)) for i in range(7)]
    assert geometric_mean(np.array(noisy)[:, None])[0] == pytest.approx(clean, rel=0.05)


def test_divergence_gives_the_floor_and_beating_it_the_cap():
    fine, lost = _losses(1.0), _losses(1.0)
    lost[HORIZON // 2 :] = np.nan
    assert _speed_up(lost, fine) == 1 / CAP
    assert _speed_up(fine, lost) == CAP
    assert final_loss(lost) == math.inf


def test_it_is_capped():
    flat = 2.5 - 1e-6 * np.arange(HORIZON)
    assert _speed_up(_losses(5.0), flat) == CAP
    assert _speed_up(flat, _losses(5.0)) == 1 / CAP


def test_taking_the_last_value_instead_would_flatter():
    # A baseline that ends above its own minimum is held to the minimum.
    rising = np.concatenate([_losses(1.0, horizon=1500), np.full(500, 1.2)])
    assert _speed_up(rising, rising) == 1.0
    assert _speed_up(_losses(1.0), rising) == pytest.approx(1.0, rel=0.05)


@given(st.integers(1, 12_000))
def test_the_grid_rises_to_the_horizon(horizon):
    points = grid(horizon)
    assert points[-1] == horizon
    assert points[0] >= 1
    assert all(b > a for a, b in itertools.pairwise(points))


def test_smoothed_is_the_mean_of_the_last_twentieth():
    losses = np.random.default_rng(0).normal(size=(3, 1000))
    curves = smoothed(losses)
    points = grid(1000)
    for column in (0, 5, len(points) - 1):
        end = points[column]
        np.testing.assert_allclose(curves[:, column], losses[:, max(0, end - 50) : end].mean(1))


def test_the_standard_error_is_over_seeds():
    logs = np.random.default_rng(0).normal(size=(5, 3))
    mean, error = geometric_mean(np.exp(logs))
    assert math.log(mean) == pytest.approx(logs.mean())
    assert error == pytest.approx(mean * logs.mean(1).std(ddof=1) / math.sqrt(5))
