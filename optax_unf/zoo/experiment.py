"""The experiment: each predictor on each size of the training set and each seed."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from optax_unf._files import write_text
from optax_unf.zoo.population import Zoo
from optax_unf.zoo.predictors import PredictorName, fit_predictor, fits
from optax_unf.zoo.scores import score


@dataclasses.dataclass(frozen=True)
class Result:
    """How well one trained predictor does.

    Attributes:
      predictor: which.
      train: how many models it was trained on.
      seed: of the split, the initial weights and the order.
      tested_on: `"test"` for models of the same zoo, else the name of another.
      tau: Kendall's tau.
      r2: the share of the variance that is explained.
      parameters: numbers that were trained.
      seconds: how long that took.
      pairs: predicted and actual rates, of the first seed and the largest training set only.
      join_gates: whether the gates of a cell were one array to it, so that it fits other cells.
    """

    predictor: PredictorName
    train: int
    seed: int
    tested_on: str
    tau: float
    r2: float
    parameters: int
    seconds: float
    pairs: tuple[tuple[float, float], ...] = ()
    join_gates: bool = False


def split(zoo: Zoo, train: int, seed: int) -> tuple[Zoo, Zoo, Zoo]:
    """Models for training, validation and test: 80 %, 10 % and 10 %, of the first part only so many.

    Args:
      zoo: all models.
      train: how many to train on; smaller sets are parts of larger ones.
      seed: of the split.

    Raises:
      ValueError: there are not as many.
    """
    order = np.random.default_rng(seed).permutation(len(zoo))
    tenth = len(zoo) // 10
    most = len(zoo) - 2 * tenth
    if not 0 < train <= most or tenth == 0:
        raise ValueError(
            f"A zoo of {len(zoo)} models has {most} to train on besides a tenth each for validation and test, but "
            f"{train} are asked for. Make more: optax-unf zoo make."
        )
    return zoo.take(order[2 * tenth :][:train]), zoo.take(order[:tenth]), zoo.take(order[tenth : 2 * tenth])


def run(
    zoo: Zoo,
    predictors: Sequence[PredictorName],
    sizes: Sequence[int],
    seeds: Sequence[int],
    *,
    known: Sequence[Result] = (),
    others: dict[str, Zoo] | None = None,
    join_gates: bool = False,
) -> Iterator[Result]:
    """Trains and tests predictors.

    Args:
      zoo: the models.
      predictors: which.
      sizes: how many models to train on.
      seeds: of the splits and the training.
      known: results that need not be made again.
      others: further zoos by name, to test on what was trained on the largest size. Of those with another cell, a
        predictor only sees what it fits.
      join_gates: whether the gates of a cell are one array to the predictors, so that they fit other cells.

    Yields:
      Each new result.

    Raises:
      ValueError: a further zoo has another cell, and gates are not joined; or it is called `"test"`.
    """
    others = others or {}
    if "test" in others:
        raise ValueError("A further zoo must not be called 'test', as the models held out are. Rename its file.")
    cell = zoo.config.cell
    for key, other in others.items():
        if other.config.cell != cell and not join_gates:
            raise ValueError(
                f"Models of {key!r} must have cells with the gates of those trained on, {cell}, but are "
                f"{other.config.cell}. Join gates, so that predictors fit both: --join-gates."
            )
    have = {(r.predictor, r.train, r.seed, r.tested_on) for r in known if r.join_gates == join_gates}
    for seed in seeds:
        for size in sizes:
            for name in predictors:
                fitting = [k for k, o in others.items() if fits(name, cell, o.config.cell, join_gates=join_gates)]
                tests = ["test", *(fitting if size == max(sizes) else [])]
                missing = [key for key in tests if (name, size, seed, key) not in have]
                if not missing:
                    continue
                train, validation, test = split(zoo, size, seed)
                fitted, predict = fit_predictor(name, train, validation, seed, join_gates=join_gates)
                for key in missing:
                    chosen = {"test": test, **others}[key]
                    predicted = predict(chosen)
                    found = score(predicted, chosen.success_rate)
                    is_shown = seed == min(seeds) and size == max(sizes)
                    pairs = zip(predicted.tolist(), chosen.success_rate.tolist(), strict=True) if is_shown else ()
                    cost = fitted.parameters, fitted.seconds
                    yield Result(name, size, seed, key, *found, *cost, tuple(pairs), join_gates)


def write_results(path: Path, results: Sequence[Result]) -> None:
    """Writes results, a line each."""
    write_text(path, "".join(json.dumps(dataclasses.asdict(result)) + "\n" for result in results))


def read_results(path: Path) -> list[Result]:
    """The results in a file; none if there is no such file.

    Raises:
      ValueError: it holds something else.
    """
    if not path.is_file():
        return []
    try:
        entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [Result(**{**entry, "pairs": tuple(map(tuple, entry["pairs"]))}) for entry in entries]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} must hold results of predictors, but does not: {error}. Move it away.") from error
