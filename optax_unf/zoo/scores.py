"""How well predictions agree with the truth."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Scores(NamedTuple):
    """Agreement of predicted with actual rates.

    Attributes:
      tau: Kendall's rank correlation, tau-b.
      r2: the share of the variance that is explained; negative where the mean does better.
    """

    tau: float
    r2: float


def score(predicted: Float[np.ndarray, " models"], actual: Float[np.ndarray, " models"]) -> Scores:
    """Scores of predictions.

    Example:
      >>> score(np.array([0.1, 0.2, 0.9]), np.array([0.1, 0.2, 0.9]))
      Scores(tau=1.0, r2=1.0)
    """
    from scipy.stats import kendalltau

    residual, total = np.sum((predicted - actual) ** 2), np.sum((actual - np.mean(actual)) ** 2)
    tau = kendalltau(predicted, actual).statistic  # pyright: ignore[reportAttributeAccessIssue]
    return Scores(float(tau), float(1.0 - residual / total))
