"""Gradient-boosted trees on statistics of weights."""

import time

import numpy as np
from jaxtyping import Array, Float

from optax_unf.zoo.fit import Fitted

_LEARNING_RATES = (0.03, 0.1)
_LEAVES = (7, 15, 31)
_MOST_TREES = 1000


def fit_trees(
    train: tuple[Float[np.ndarray, "models statistics"], Float[np.ndarray, " models"]],
    validation: tuple[Float[np.ndarray, "others statistics"], Float[np.ndarray, " others"]],
    seed: int,
) -> Fitted:
    """Boosted trees, their learning rate, size and number chosen on validation data.

    Args:
      train: statistics, and rates.
      validation: the same.
      seed: of the order in which features are tried.

    Raises:
      ModuleNotFoundError: scikit-learn is not installed.
    """
    try:
        from sklearn.ensemble import HistGradientBoostingRegressor
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Boosted trees need scikit-learn, which is not installed: pip install 'optax-unf[zoo]'."
        ) from error
    start = time.perf_counter()
    tried = []
    for rate in _LEARNING_RATES:
        for leaves in _LEAVES:
            trees = HistGradientBoostingRegressor(
                learning_rate=rate,
                max_leaf_nodes=leaves,
                max_iter=_MOST_TREES,
                early_stopping=True,  # pyright: ignore[reportArgumentType]
                n_iter_no_change=30,
                random_state=seed,
            )
            trees.fit(*train, X_val=validation[0], y_val=validation[1])
            error = float(np.mean((trees.predict(validation[0]) - validation[1]) ** 2))
            tried.append((error, trees.n_iter_ * leaves, trees))
    error, parameters, best = min(tried, key=lambda t: t[0])

    def predict(given: Float[Array | np.ndarray, "models statistics"]) -> Float[np.ndarray, " models"]:
        return np.clip(best.predict(np.asarray(given)), 0.0, 1.0)

    return Fitted(predict, None, (error,), parameters, time.perf_counter() - start)
