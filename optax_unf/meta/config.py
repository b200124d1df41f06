"""Settings of a meta-training run."""

import dataclasses
from typing import Literal

import optax

from optax_unf.meta.estimators import PES, Backprop, check_truncation


@dataclasses.dataclass(frozen=True)
class Stage:
    """One part of a run: an estimator, and Adam with a schedule of its own.

    Attributes:
      estimator: the gradient estimator.
      steps: outer steps.
      learning_rate: of the outer Adam, at its peak.
      schedule: `"constant"`, or `"cosine"` down to zero at the end of the stage.
      warmup: outer steps over which the rate rises linearly from zero.
    """

    estimator: PES | Backprop
    steps: int
    learning_rate: float
    schedule: Literal["constant", "cosine"] = "constant"
    warmup: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 <= self.warmup < self.steps:
            raise ValueError(
                f"A stage needs at least one outer step, and fewer of warm-up, but has {self.steps} and {self.warmup}."
            )
        if not self.learning_rate > 0:
            raise ValueError(f"The outer learning rate must be positive, but is {self.learning_rate}.")
        if self.schedule not in ("constant", "cosine"):
            raise ValueError(f"schedule must be 'constant' or 'cosine', but is {self.schedule!r}.")

    def rate(self) -> optax.Schedule:
        """The outer learning rate at each step of the stage."""
        if self.schedule == "cosine":
            return optax.warmup_cosine_decay_schedule(
                0.0 if self.warmup else self.learning_rate, self.learning_rate, self.warmup, self.steps
            )
        return optax.join_schedules(
            [
                optax.linear_schedule(0.0, self.learning_rate, self.warmup),
                optax.constant_schedule(self.learning_rate),
            ],
            [self.warmup],
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
      checkpoint_every: outer steps between checkpoints.
    """

    stages: tuple[Stage, ...] = (Stage(PES(), steps=50_000, learning_rate=1e-4),)
    horizon: int = 2000
    clip_norm: float = 1.0
    evaluate_every: int = 50
    evaluate_runs: int = 8
    checkpoint_every: int = 50

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("A meta-training run needs at least one stage, but stages is empty.")
        for stage in self.stages:
            check_truncation(stage.estimator.truncation, self.horizon)
        for name in ("evaluate_every", "evaluate_runs", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, but is {getattr(self, name)}.")
        if not self.clip_norm > 0:
            raise ValueError(f"clip_norm must be positive, but is {self.clip_norm}.")
