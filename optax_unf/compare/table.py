"""A comparison in words: a page of Markdown, and one line for each number."""

import math
from collections.abc import Iterator

import numpy as np

from optax_unf.compare.results import Comparison, Result, mean_and_error

_HEADER = (
    "optimizer",
    "training loss",
    "validation loss",
    "training loss above {reference}",
    "steps to Adam's loss",
    "seconds to it",
)


def markdown_page(comparison: Comparison) -> str:
    """The page of a comparison: its table, and how it was made.

    Args:
      comparison: the results. Learned optimizers come first, each group by its mean training loss.
    """
    reference = comparison.reference
    header = [text.format(reference=reference.name if reference else "-") for text in _HEADER]
    rows = [_cells(result, reference) for result in _in_order(comparison)]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows))
    made = comparison.made
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    return f"""# {comparison.task}

{comparison.description}

Losses, mean ± standard error of {comparison.seeds} fresh seeds, the same for all optimizers. Training loss:
mean of the last 50 of {comparison.steps:,} inner steps. Validation loss: of the final parameters on the held-out data.
The fourth column is the mean of the differences seed by seed. Steps to Adam's loss: until the mean curve, smoothed over
50 steps, is at the final training loss of Adam with its best constant rate; "-" if it never is. Seconds: these steps
times the median time of one, measured in the same process on one device.

{table}

![training curves of all tasks](comparison.png)

{_rates(comparison)}
Made on {made["date"]} by `{made["command"]}` (commit {made["commit"] or "unknown"}; {made["machine"]}; {versions}).
"""


def number_lines(comparison: Comparison) -> Iterator[str]:
    """Lines of `name value unit`, for programs to read."""
    for result in _in_order(comparison):
        yield from result_lines(result)


def result_lines(result: Result) -> Iterator[str]:
    r"""Lines of `name value unit` of one optimizer.

    Example:
      >>> from optax_unf.compare.results import Curve
      >>> curve = Curve((50,), (0.5,), (0.1,))
      >>> print(*result_lines(Result("SGDM", False, {}, (0.4, 0.6), (0.7, 0.7), 1e-4, None, curve)), sep="\n")
      sgdm_training_loss 0.5 -
      sgdm_training_loss_error 0.1 -
      sgdm_validation_loss 0.7 -
      sgdm_validation_loss_error 0 -
      sgdm_time_per_step 0.1 ms
    """
    name = "_".join(result.name.lower().replace(",", " ").replace("-", " ").split())
    if result.rate is not None:
        yield f"{name}_rate {result.rate:.4g} -"
    for loss in ("training_loss", "validation_loss"):
        mean, error = mean_and_error(getattr(result, loss))
        yield f"{name}_{loss} {mean:.6g} -"
        yield f"{name}_{loss}_error {error:.6g} -"
    yield f"{name}_time_per_step {1e3 * result.seconds_per_step:.4g} ms"
    if result.steps_to_adam is not None:
        yield f"{name}_steps_to_adam {result.steps_to_adam} steps"
        yield f"{name}_time_to_adam {result.seconds_to_adam:.4g} s"


def _in_order(comparison: Comparison) -> list[Result]:
    return sorted(comparison.results, key=lambda result: (not result.learned, mean_and_error(result.training_loss)))


def _cells(result: Result, reference: Result | None) -> list[str]:
    above = "-"
    if reference is not None and result is not reference:
        # A run that diverged on both sides has no difference.
        with np.errstate(invalid="ignore"):
            above = _plus_minus(np.subtract(result.training_loss, reference.training_loss), diverged="-")
    seconds = result.seconds_to_adam
    return [
        result.name if result.rate is None else f"{result.name} (rate {result.rate:.2g})",
        _plus_minus(result.training_loss),
        _plus_minus(result.validation_loss),
        above,
        "-" if result.steps_to_adam is None else f"{result.steps_to_adam:,}",
        "-" if seconds is None else f"{seconds:.2g}",
    ]


def _plus_minus(values: tuple[float, ...] | np.ndarray, diverged: str = "diverged ({} of {})") -> str:
    mean, error = mean_and_error(values)
    if not math.isfinite(mean):
        return diverged.format(sum(not math.isfinite(x) for x in values), len(values))
    return f"{mean:.4f} ± {error:.4f}"


def _rates(comparison: Comparison) -> str:
    """What each grid was, and where it had to grow."""
    lines = []
    for result in comparison.results:
        if not result.tuning:
            continue
        grid, rates = result.settings["grid"], [rate for rate, _ in result.tuning]
        beyond = sorted(set(rates) - set(grid))
        lines.append(
            f"- {result.name}: best of {len(grid)} rates from {min(grid):.2g} to {max(grid):.2g}"
            + (f", and {', '.join(f'{rate:.2g}' for rate in beyond)} beyond the end of the grid" if beyond else "")
            + f", by the mean final training loss of {result.settings['tuning_seeds']} tuning seeds"
            + (f"; weight decay {decay:g}" if (decay := result.settings.get("weight_decay")) else "")
        )
    return "\n".join([*lines, ""]) if lines else ""
