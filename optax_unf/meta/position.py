"""Where a meta-training run stands, and whether a checkpoint belongs to it."""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from optax_unf.meta.checkpoint import Checkpoints
from optax_unf.meta.config import MetaTrainConfig
from optax_unf.optimizer.architecture import Architecture, InitialScalars
from optax_unf.tasks.task import TaskLike

# Settings that a run may change when it continues: they do not change its result.
_FREE = ("checkpoint_every", "keep_checkpoints")


@dataclasses.dataclass
class Position:
    """Where a run stands: what its checkpoint records beside the arrays.

    Attributes:
      settings: what the result depends on, see `settings_of`.
      stage: the number of the stage.
      step: outer steps of this stage that are done.
      seconds: wall time so far.
      curve: the evaluations so far.
    """

    settings: dict[str, Any]
    stage: int = 0
    step: int = 0
    seconds: float = 0.0
    curve: list[dict[str, float]] = dataclasses.field(default_factory=list)

    def total(self, config: MetaTrainConfig) -> int:
        """Outer steps so far, of all stages."""
        return sum(stage.steps for stage in config.stages[: self.stage]) + self.step


def settings_of(
    architecture: Architecture,
    scalars: InitialScalars | None,
    tasks: dict[str, TaskLike],
    config: MetaTrainConfig,
    key: Array,
    start: str | None,
) -> dict[str, Any]:
    """All that the result of a run depends on, as JSON holds it."""
    data = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
    settings = {
        "tasks": list(tasks),
        "key": np.asarray(data).tolist(),
        "architecture": dataclasses.asdict(architecture),
        "scalars": scalars and dataclasses.asdict(scalars),
        "start": start,
        **{name: value for name, value in config.to_dict().items() if name not in _FREE},
    }
    # Without tuples.
    return json.loads(json.dumps(settings))


def resumed(checkpoints: Checkpoints, step: int, wanted: dict[str, Any]) -> Position:
    """The position of a checkpoint, whose settings must be those wanted."""
    position = Position(**checkpoints.record(step))
    if differs := _difference(position.settings, wanted):
        raise ValueError(
            f"{checkpoints.folder} belongs to a run with other settings: its {differs}. Give a new output folder, or "
            f"the old settings."
        )
    return position


def _difference(found: Any, wanted: Any, name: str = "") -> str:
    """The first setting that differs, by its path, and both values; empty if none does."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        pairs = [(f"{name}.{key}".lstrip("."), found.get(key), wanted.get(key)) for key in {**wanted, **found}]
    elif isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        pairs = [(f"{name}[{n}]", *values) for n, values in enumerate(zip(found, wanted, strict=True))]
    else:
        return "" if found == wanted else f"{name} is {found}, not {wanted}"
    return next(filter(None, (_difference(a, b, path) for path, a, b in pairs)), "")
