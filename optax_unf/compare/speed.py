"""The measure: how many times fewer steps an optimizer takes than another to the loss that both reach."""

import functools
import math

import numpy as np
from jaxtyping import Float

POINTS = 128
CAP = 20.0
# Of a run: the losses that a smoothed curve averages, and those that a final loss does.
_WINDOW = 0.05


@functools.cache
def grid(horizon: int) -> tuple[int, ...]:
    """The numbers of steps at which curves are kept: denser where training is fast, at most 128 of them."""
    return tuple(np.unique(np.ceil(horizon * np.linspace(0, 1, POINTS + 1)[1:] ** 2).astype(int)).tolist())


def smoothed(losses: Float[np.ndarray, "*runs steps"]) -> Float[np.ndarray, "*runs points"]:
    """The mean over the last 20th of the run's steps, or over all so far while these are fewer, at the grid's points.

    Example:
      >>> smoothed(np.linspace(1.0, 0.0, 1000))[[0, -1]].round(3)
      array([1.   , 0.025])
    """
    losses = np.asarray(losses, np.float64)
    steps = losses.shape[-1]
    ends = np.array(grid(steps))
    window = _window(steps)
    means = [losses[..., max(0, end - window) : end].mean(-1) for end in ends]
    return np.stack(means, -1)


def final_loss(losses: Float[np.ndarray, "*runs steps"]) -> Float[np.ndarray, "*runs"]:
    """The mean over the last 20th of the steps; infinite where a run diverged."""
    last = smoothed(losses)[..., -1]
    return np.where(np.isfinite(last), last, np.inf)


def speed_up(curve: Float[np.ndarray, " points"], baseline: Float[np.ndarray, " points"], horizon: int) -> float:
    """Steps that the baseline needs for the loss both reach, over steps that the optimizer needs.

    The loss both reach is the higher of the minima of both smoothed curves; the steps to it are interpolated between
    the points of the grid, and an average stands at the middle of its window, so that smoothing delays no curve. A
    curve against itself gives 1, and swapping both gives the inverse. The result lies between 1/20, which a run that
    diverged has, and 20.

    Args:
      curve: the smoothed losses of a run.
      baseline: those of the baseline.
      horizon: the steps of both runs.

    Example:
      >>> slow, fast = (smoothed(np.exp(-np.arange(1000) / scale)) for scale in (400, 200))
      >>> round(speed_up(fast, slow, 1000), 2), speed_up(slow, slow, 1000)
      (2.0, 1.0)
    """
    if not np.isfinite(curve[-1]):
        return 1 / CAP
    if not np.isfinite(baseline[-1]):
        return CAP
    mine, theirs = np.minimum.accumulate(curve), np.minimum.accumulate(baseline)
    reached = max(mine[-1], theirs[-1])
    steps = np.array(grid(horizon))
    middles = steps - np.minimum(steps, _window(horizon)) / 2
    ratio = _steps_to(reached, theirs, middles) / _steps_to(reached, mine, middles)
    return float(np.clip(ratio, 1 / CAP, CAP))


def _window(horizon: int) -> int:
    return max(1, math.ceil(_WINDOW * horizon))


def _steps_to(loss: float, falling: Float[np.ndarray, " points"], steps: Float[np.ndarray, " points"]) -> float:
    """The first number of steps, between points, at which a falling curve is at the loss."""
    end = int(np.argmax(falling <= loss))
    if end == 0:
        return float(steps[0])
    before, after = falling[end - 1], falling[end]
    share = (before - loss) / (before - after)
    return float(steps[end - 1] + share * (steps[end] - steps[end - 1]))


def geometric_mean(ratios: Float[np.ndarray, "seeds tasks"]) -> tuple[float, float]:
    """The geometric mean over tasks and seeds, and its standard error over seeds.

    Example:
      >>> geometric_mean(np.array([[1.0, 4.0], [2.0, 2.0]]))
      (2.0, 0.0)
    """
    by_seed = np.log(ratios).mean(1)
    mean = math.exp(by_seed.mean())
    error = by_seed.std(ddof=1) / math.sqrt(len(by_seed)) if len(by_seed) > 1 else math.nan
    return mean, float(mean * error)
