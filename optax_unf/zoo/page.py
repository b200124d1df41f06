"""The results as a page, with pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from optax_unf._files import replaced, write_text
from optax_unf.meta.card import made_by
from optax_unf.meta.plot import new_figure
from optax_unf.zoo.experiment import Result
from optax_unf.zoo.population import Zoo
from optax_unf.zoo.predictors import LABELS, PredictorName

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ABOUT = """\
Success rates of sequence-to-sequence models on held-out sums, predicted from their weights: Kendall's tau and R² on
models held out, mean ± standard error over {seeds} seeds, each with its own split, initial weights and order. Seconds
are of training, without compilation, on a machine that may do other work.
"""
_JOINED = """\
## Gates joined

The gates of a cell are one array to these predictors: normalized and pooled together. So they fit other cells.

"""


def write_page(folder: Path, zoo: Zoo, results: Sequence[Result], made: Mapping[str, Any]) -> str:
    """Writes FOLDER/zoo.md, zoo-rates.png, zoo-scatter.png and zoo-sizes.png, and returns the page.

    Args:
      folder: where to.
      zoo: the models.
      results: of the predictors.
      made: versions and commit, as `optax_unf.meta.card.provenance` gives them.

    Raises:
      ValueError: there are no results.
    """
    if not results:
        raise ValueError("A page needs results, but there are none. Make some: optax-unf zoo train.")
    shown = [r for r in results if not r.join_gates] or results
    figures = {"rates": plot_rates(zoo), "scatter": plot_scatter(shown), "sizes": plot_sizes(shown)}
    for name, figure in figures.items():
        with replaced(folder / f"zoo-{name}.png") as temporary:
            figure.savefig(temporary, format="png", dpi=110)
    text = page(zoo, results, made)
    write_text(folder / "zoo.md", text)
    return text


def page(zoo: Zoo, results: Sequence[Result], made: Mapping[str, Any]) -> str:
    """The page in markdown."""
    rates, config = zoo.success_rate, zoo.config
    parts = [
        "# Success predicted from weights\n",
        _ABOUT.format(seeds=len({result.seed for result in results})),
        f"The zoo: {len(zoo):,} models with {config.hidden} hidden units, cell {config.cell}, on sums of numbers up to "
        f"{config.largest}, {config.held_out:,} questions held out. Below a success rate of 0.02: "
        f"{np.mean(rates < 0.02):.0%}; above 0.98: {np.mean(rates > 0.98):.0%}; quartiles "
        f"{', '.join(f'{q:.2f}' for q in np.quantile(rates, (0.25, 0.5, 0.75)))}.\n",
        *_sections([r for r in results if not r.join_gates]),
        *_sections([r for r in results if r.join_gates], _JOINED),
        "![rates](zoo-rates.png)\n\n![predicted against actual](zoo-scatter.png)\n\n![sizes](zoo-sizes.png)\n",
        made_by(made),
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _sections(results: Sequence[Result], heading: str = "") -> list[str]:
    """Scores and differences, at home and on each further zoo."""
    if not results:
        return []
    others = [name for name in dict.fromkeys(result.tested_on for result in results) if name != "test"]
    return [
        f"{heading}{_table(results, 'test')}",
        _differences(results, "test"),
        *(
            part
            for name in others
            for part in (f"## Tested on {name}, never seen\n\n{_table(results, name)}", _differences(results, name))
        ),
    ]


def _table(results: Sequence[Result], tested_on: str) -> str:
    rows = ["| predictor | trained on | tau | R² | parameters | seconds |", "|---|---|---|---|---|---|"]
    for name in LABELS:
        for size in sorted({r.train for r in results}, reverse=True):
            some = chosen(results, name, size, tested_on)
            if some:
                tau, r2 = (mean_and_error([getattr(r, field) for r in some]) for field in ("tau", "r2"))
                rows.append(
                    f"| {LABELS[name]} | {size:,} | {tau[0]:.3f} ± {tau[1]:.3f} | {r2[0]:.3f} ± {r2[1]:.3f} | "
                    f"{some[0].parameters:,} | {np.mean([r.seconds for r in some]):.0f} |"
                )
    return "\n".join(rows) + "\n"


def _differences(results: Sequence[Result], tested_on: str) -> str:
    """By how much UNF's tau is above that of the others on the same splits, for the largest training set."""
    size = max(r.train for r in results)
    of_seed = {name: {r.seed: r.tau for r in chosen(results, name, size, tested_on)} for name in LABELS}
    others: list[PredictorName] = [name for name in LABELS if of_seed[name]]
    ours: list[PredictorName] = [name for name in others if name in ("unf", "unf-tied")]
    if not ours:
        return ""
    rows = [
        f"Tau less that of the column on the same splits, {size:,} models to train on:\n",
        f"| | {' | '.join(LABELS[name] for name in others)} |",
        "|---" * (1 + len(others)) + "|",
    ]
    for name in ours:
        cells = []
        for other in others:
            shared = sorted(of_seed[name].keys() & of_seed[other].keys())
            mean, error = mean_and_error([of_seed[name][seed] - of_seed[other][seed] for seed in shared] or [np.nan])
            cells.append("" if name == other or not shared else f"{mean:+.3f} ± {error:.3f}")
        rows.append(f"| {LABELS[name]} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def chosen(results: Sequence[Result], name: PredictorName, size: int, tested_on: str = "test") -> list[Result]:
    """The results of all seeds of one predictor."""
    return [r for r in results if (r.predictor, r.train, r.tested_on) == (name, size, tested_on)]


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard error; NaN for the error of one value."""
    error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return float(np.mean(values)), float(error)


def plot_rates(zoo: Zoo) -> "Figure":
    """A histogram of the success rates, and the rates against learning rates."""
    figure = new_figure((9, 3.2))
    histogram, rates = figure.subplots(1, 2)
    histogram.hist(zoo.success_rate, bins=np.linspace(0, 1, 26))
    histogram.set(xlabel="success rate", ylabel="models")
    steps = zoo.records["steps"]
    for count in np.unique(steps):
        chosen = steps == count
        rates.scatter(
            zoo.records["learning_rate"][chosen], zoo.success_rate[chosen], s=3, label=f"{int(count):,} steps"
        )
    rates.set(xscale="log", xlabel="learning rate", ylabel="success rate")
    rates.legend(fontsize="small")
    return figure


def plot_scatter(results: Sequence[Result]) -> "Figure":
    """Predicted against actual rates, a panel for each predictor."""
    # Runs on other sizes, if they had a call of their own, keep pairs as well.
    most = max(r.train for r in results)
    shown = [r for name in LABELS for r in chosen(results, name, most) if r.pairs]
    figure = new_figure((2.6 * max(len(shown), 1), 2.9))
    for axes, result in zip(figure.subplots(1, max(len(shown), 1), sharey=True, squeeze=False)[0], shown, strict=False):
        predicted, actual = np.array(result.pairs).T
        axes.plot((0, 1), (0, 1), color="0.7", linewidth=0.8)
        axes.scatter(actual, predicted, s=4)
        axes.set(xlabel="actual", title=f"{LABELS[result.predictor]}\ntau {result.tau:.3f}")
        axes.title.set_fontsize("small")
    figure.supylabel("predicted", fontsize="medium")
    return figure


def plot_sizes(results: Sequence[Result]) -> "Figure":
    """Kendall's tau against the number of models that were trained on."""
    figure = new_figure((5, 3.4))
    axes = figure.subplots()
    for name in LABELS:
        sizes = sorted({r.train for r in results if r.predictor == name})
        scores = [mean_and_error([r.tau for r in chosen(results, name, size)]) for size in sizes]
        if scores:
            means, errors = zip(*scores, strict=True)
            axes.errorbar(sizes, means, np.nan_to_num(errors), label=LABELS[name], marker="o", markersize=3)
    axes.set(xscale="log", xlabel="models to train on", ylabel="Kendall's tau")
    shown = sorted({r.train for r in results})
    axes.set_xticks(shown, [f"{size:,}" for size in shown], minor=False)
    axes.set_xticks([], minor=True)
    axes.legend(fontsize="small")
    return figure
