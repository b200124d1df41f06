"""Who takes part: optimizers with a tuned rate, those with nothing to tune, and candidates."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, Literal

import jax
import optax
from jaxtyping import Array, Float

from optax_unf._imported import imported
from optax_unf.infer import Inferred
from optax_unf.optimizer.unf import unf
from optax_unf.optimizer.weight_files import load_weights
from optax_unf.tasks.task import Params, TaskLike, as_task

Make = Callable[[Float[Array, ""], int, TaskLike], optax.GradientTransformation]


@dataclasses.dataclass(frozen=True)
class Contender:
    """An optimizer that takes part.

    Attributes:
      name: its name in tables.
      make: the optax optimizer of a setting (a rate or factor, which may be traced), a number of steps, and a task.
      middle: of the grid of settings, where the setting is tuned: 7 of them, each twice the one before.
      setting: the setting, where it is not tuned.
      trained: from the optimizer's state and the parameters, those to be evaluated at the end.
    """

    name: str
    make: Make
    middle: float | None = None
    setting: float = 1.0
    trained: Callable[[Any, Params], Params] = lambda state, params: params

    @property
    def grid(self) -> tuple[float, ...]:
        """The settings to try first."""
        return () if self.middle is None else tuple(self.middle * 2.0**power for power in range(-3, 4))


def cosine(peak: float | Float[Array, ""], steps: int) -> optax.Schedule:
    """From `peak` to zero over the run."""
    return optax.cosine_decay_schedule(peak, steps)  # pyright: ignore[reportArgumentType]


def _adam(b2: float) -> Make:
    return lambda rate, steps, task: optax.adam(cosine(rate, steps), b2=b2)


def _sgdm(rate: Array, steps: int, task: TaskLike) -> optax.GradientTransformation:
    return optax.sgd(cosine(rate, steps), momentum=0.9)


def _muon(rate: Array, steps: int, task: TaskLike) -> optax.GradientTransformation:
    return optax.contrib.muon(cosine(rate, steps))


def _prodigy(rate: Array, steps: int, task: TaskLike) -> optax.GradientTransformation:
    return optax.contrib.prodigy(cosine(rate, steps))


def _schedule_free(rate: Array, steps: int, task: TaskLike) -> optax.GradientTransformation:
    return optax.contrib.schedule_free_adamw(0.0025 * rate, warmup_steps=max(1, steps // 20))


ADAM = Contender("Adam, cosine", _adam(0.999), middle=0.008)
MUON = Contender("Muon, cosine", _muon, middle=0.02)
UNTUNED_ADAM = Contender("Adam 1e-3", lambda rate, steps, task: optax.adam(1e-3 * rate))
# Those that every table has; speeds are over the first three.
BASELINES = (
    UNTUNED_ADAM,
    ADAM,
    MUON,
    Contender("Adam, b2 0.95, cosine", _adam(0.95), middle=0.008),
    Contender("SGDM, cosine", _sgdm, middle=0.1),
    Contender("Prodigy, cosine", _prodigy),
    Contender("schedule-free AdamW", _schedule_free, trained=optax.contrib.schedule_free_eval_params),
)
"""What people would use otherwise: Adam at 1e-3, and others each at its best rate."""


def candidate(
    source: str, *, spec: Literal["none", "inferred"] = "none", setting: float = 1.0, middle: float | None = None
) -> Contender:
    """A contender by name.

    Args:
      source: `module:attribute` or `file.py:attribute`, a function `(total_steps) -> GradientTransformation`, which may
        also take an argument `factor`; or meta-weights by name or path, which take their own alpha times the factor,
        with a cosine over the run.
      spec: none, or what is inferred from the task's loss; a function takes it as its argument `spec`.
      setting: the factor.
      middle: of a grid of factors, to take the best of.

    Raises:
      ValueError: nothing is found there.

    Example:
      >>> candidate("mlp-fashion-mnist-deepsets", setting=0.5).name
      'mlp-fashion-mnist-deepsets x 0.5'
    """
    make = _imported(source, spec) if ":" in source else _learned(source, spec)
    name = source if spec == "none" else f"{source}, {spec} spec"
    if middle is not None:
        name += ", tuned"
    elif setting != 1.0:
        name += f" x {setting:g}"
    return Contender(name, make, middle=middle, setting=setting)


def _imported(source: str, spec: str) -> Make:
    function = imported(source)
    taken = inspect.signature(function).parameters
    if spec == "inferred" and "spec" not in taken:
        raise ValueError(f"{source} must take an argument spec to be given inferred specs, but takes {list(taken)}.")

    def make(factor: Array, steps: int, task: TaskLike) -> optax.GradientTransformation:
        given = {"factor": factor} if "factor" in taken else {}
        return function(steps, **given, **({"spec": _axes(task)} if spec == "inferred" else {}))

    return make


def _learned(source: str, spec: str) -> Make:
    weights = load_weights(source)

    def make(factor: Array, steps: int, task: TaskLike) -> optax.GradientTransformation:
        axes = _axes(task) if spec == "inferred" else None
        return unf(weights, total_steps=steps, factor=factor, spec=axes, tile_entries=0)

    return make


def _axes(task: TaskLike) -> Any:
    """The task's spec: its own, or for a task without one, inferred from its loss."""
    if (axes := as_task(task).axes) is not None:
        return axes
    return Inferred(task.loss, jax.eval_shape(task.sample, jax.random.key(0)))
