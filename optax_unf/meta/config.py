"""Settings of a meta-training run."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import optax

from optax_unf._arguments import check_choice
from optax_unf._settings import settings_from_json
from optax_unf.meta.estimators.backprop import Backprop
from optax_unf.meta.estimators.evolution import NRES, PES, FullES, TruncatedES

# What a configuration file can name.
_ESTIMATORS = {estimator.__name__: estimator for estimator in (PES, NRES, FullES, TruncatedES, Backprop)}


@dataclasses.dataclass(frozen=True)
class Stage:
    """One part of a run: an estimator, and Adam with a schedule of its own.

    Attributes:
      estimator: the gradient estimator.
      steps: outer steps.
      learning_rate: of the outer Adam, at its peak.
      schedule: `"constant"`, or `"cosine"` down to zero at the end of the stage.
      warmup: outer steps over which the rate rises linearly from zero.
      scalar_rate: the peak for log alpha, logit gamma_0 and log beta. By default beta itself is trained, and all of
        them at `learning_rate`: right for fresh weights, whose beta has to grow by far.
      trained: `"all"`, or `"scalars"`: the network stays as it is, estimators differentiate or perturb the scalars
        alone, beta as its logarithm, and `learning_rate` is theirs.
    """

    estimator: PES | NRES | FullES | TruncatedES | Backprop
    steps: int
    learning_rate: float
    schedule: Literal["constant", "cosine"] = "constant"
    warmup: int = 0
    scalar_rate: float | None = None
    trained: Literal["all", "scalars"] = "all"

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 <= self.warmup < self.steps:
            raise ValueError(
                f"A stage needs at least one outer step, and fewer of warm-up, but has {self.steps} and {self.warmup}."
            )
        if not self.learning_rate > 0:
            raise ValueError(
                f"learning_rate must be positive, but is {self.learning_rate}. trained='scalars' leaves the network as "
                f"it is."
            )
        if self.scalar_rate is not None and not self.scalar_rate > 0:
            raise ValueError(f"scalar_rate must be positive, but is {self.scalar_rate}.")
        check_choice("trained", self.trained, ("all", "scalars"))
        if self.trained == "scalars" and self.scalar_rate is not None:
            raise ValueError("With trained='scalars' their rate is learning_rate, so scalar_rate must not be given.")
        if self.schedule not in ("constant", "cosine"):
            raise ValueError(f"schedule must be 'constant' or 'cosine', but is {self.schedule!r}.")

    @property
    def log_beta(self) -> bool:
        """Whether beta is trained as its logarithm."""
        return self.trained == "scalars" or self.scalar_rate is not None

    def rate(self, peak: float | None = None) -> optax.Schedule:
        """A rate at each step of the stage, as its schedule wants it: `learning_rate`, or one with another peak."""
        peak = self.learning_rate if peak is None else peak
        if self.schedule == "cosine":
            return optax.warmup_cosine_decay_schedule(0.0 if self.warmup else peak, peak, self.warmup, self.steps)
        return optax.join_schedules(
            [optax.linear_schedule(0.0, peak, self.warmup), optax.constant_schedule(peak)], [self.warmup]
        )


@dataclasses.dataclass(frozen=True)
class MetaTrainConfig:
    """Settings of a meta-training run; the defaults are the paper's.

    Attributes:
      stages: what to do, one after another. Estimators of other truncation lengths compile anew, once a stage.
      horizon: inner steps of one whole inner run.
      clip_norm: outer gradients are scaled down to this norm.
      evaluate_every: outer steps between evaluations on fresh inner runs; the best meta-weights are kept.
      evaluate_runs: inner runs of an evaluation.
      checkpoint_every: outer steps between checkpoints; there is one at the end of each stage besides.
      keep_checkpoints: how many of the newest checkpoints to keep.

    Example:
      >>> config = MetaTrainConfig((Stage(PES(pairs=2), steps=5, learning_rate=1e-3),))
      >>> config.to_dict()["stages"][0]["estimator"]["name"]
      'PES'
      >>> MetaTrainConfig.from_dict(config.to_dict()) == config
      True
    """

    stages: tuple[Stage, ...] = (Stage(PES(), steps=50_000, learning_rate=1e-4),)
    horizon: int = 2000
    clip_norm: float = 1.0
    evaluate_every: int = 50
    evaluate_runs: int = 8
    checkpoint_every: int = 50
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("A meta-training run needs at least one stage, but stages is empty.")
        for stage in self.stages:
            stage.estimator.check(self.horizon)
        for name in ("evaluate_every", "evaluate_runs", "checkpoint_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, but is {getattr(self, name)}.")
        if not self.clip_norm > 0:
            raise ValueError(f"clip_norm must be positive, but is {self.clip_norm}.")

    @property
    def steps(self) -> int:
        """Outer steps of all stages together."""
        return sum(stage.steps for stage in self.stages)

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON holds them; each estimator has its class's name as its `name`."""
        settings = dataclasses.asdict(self)
        settings["stages"] = list(settings["stages"])
        for stage, described in zip(self.stages, settings["stages"], strict=True):
            described["estimator"] = {"name": type(stage.estimator).__name__, **described["estimator"]}
        return settings

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "MetaTrainConfig":
        """The configuration that `to_dict` described; what is left out has its default.

        Args:
          settings: such as a JSON file holds.

        Raises:
          ValueError: a setting or an estimator is unknown, missing or of another type.

        Example:
          >>> MetaTrainConfig.from_dict({"horizon": 500}).horizon
          500
        """
        if not isinstance(settings, Mapping):
            raise ValueError(f"The settings of a meta-training run must be an object of JSON, but are {settings!r}.")
        stages = settings.get("stages")
        read = [_stage(stage) for stage in stages] if isinstance(stages, list | tuple) else stages
        return settings_from_json(cls, {**settings, **({"stages": read} if "stages" in settings else {})}, "a run")


def _stage(settings: Any) -> Stage:
    described = settings.get("estimator") if isinstance(settings, Mapping) else None
    if not isinstance(described, Mapping):
        return settings_from_json(Stage, settings, "a stage")
    name = described.get("name")
    if not isinstance(name, str) or name not in _ESTIMATORS:
        raise ValueError(f"The name of an estimator must be one of {', '.join(_ESTIMATORS)}, but is {name!r}.")
    own = {setting: value for setting, value in described.items() if setting != "name"}
    return settings_from_json(
        Stage, {**settings, "estimator": settings_from_json(_ESTIMATORS[name], own, name)}, "a stage"
    )
