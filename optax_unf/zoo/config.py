"""What a zoo is made of."""

import dataclasses
import json
import math
from typing import Any, TypeAlias

from optax_unf._settings import settings_from_json
from optax_unf.zoo.cells import CELLS, CellName

Range: TypeAlias = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class ZooConfig:
    """A population of models.

    A shard of models has one batch size and one number of steps, taken in turn, so that no work is done for nothing.

    Attributes:
      hidden: Hidden units of encoder and decoder.
      cell: The kind of cell of both.
      largest: The largest operand of a sum.
      held_out: How many questions are held out.
      learning_rate: Adam's, log-uniform in this range.
      batch_sizes: Questions a step.
      steps: How long models are trained.
      init_scale: Factor of the kernels at initialization, log-uniform in this range.
      weight_decay: Decoupled, as in AdamW, log-uniform in this range; 0 0 for none.
      seed: Of the initial weights, batches and settings. The questions held out are the same for every seed.
      shard: How many models are trained and written together.
      lanes: How many of them one program trains at once.

    Raises:
      ValueError: a setting is out of range.
    """

    hidden: int = 16
    cell: CellName = "gru"
    largest: int = 59
    held_out: int = 1000
    learning_rate: Range = (1e-4, 1e-2)
    batch_sizes: tuple[int, ...] = (64, 128, 256)
    steps: tuple[int, ...] = (1500, 3000, 6000)
    init_scale: Range = (0.5, 2.0)
    weight_decay: Range = (0.0, 0.0)
    seed: int = 0
    shard: int = 64
    lanes: int = 16

    def __post_init__(self) -> None:
        if self.cell not in CELLS:
            raise ValueError(f"cell must be one of {', '.join(CELLS)}, but is {self.cell!r}.")
        for name in ("hidden", "held_out", "shard", "lanes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, but is {getattr(self, name)}.")
        for name in ("batch_sizes", "steps"):
            if not getattr(self, name) or min(getattr(self, name)) < 1:
                raise ValueError(f"{name} must be one or more numbers from 1 on, but is {getattr(self, name)}.")
        for name in ("learning_rate", "init_scale", "weight_decay"):
            low, high = getattr(self, name)
            if not (0 < low <= high < math.inf or (name == "weight_decay" and low == high == 0)):
                raise ValueError(f"{name} must be a range of positive numbers, lowest first, but is {(low, high)}.")
        if self.shard % self.lanes:
            raise ValueError(f"A shard must be a multiple of {self.lanes} lanes, but has {self.shard} models.")

    def of_shard(self, number: int) -> tuple[int, int]:
        """The batch size and the steps of a shard; the largest steps come with each batch size."""
        batch, steps = number % len(self.batch_sizes), number // len(self.batch_sizes) % len(self.steps)
        return self.batch_sizes[batch], self.steps[steps]

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON has them."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> "ZooConfig":
        """The inverse of `to_dict`.

        Raises:
          ValueError: a setting is unknown or out of range.
        """
        return settings_from_json(cls, settings, "a zoo")
