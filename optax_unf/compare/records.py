"""What was measured of contenders on tasks, in memory and on disk."""

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from optax_unf._files import replaced

_FORMAT = "optax_unf suite 1"
_BASELINES = Path(__file__).with_name("bundled")


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
    """Runs of one contender on one task.

    Attributes:
      task: the task's name.
      contender: the contender's name.
      horizon: inner steps of a run.
      setting: the rate or factor, the best one where it was tuned.
      tuning: pairs of a setting and its mean final loss over the tuning seeds.
      start: the loss before the first step, for each seed: it tells whether two records are of the same task.
      curves: smoothed training losses, at the points of `optax_unf.compare.speed.grid`.
      final: training loss at the end, for each seed.
      held_out: loss on held-out data at the end, for each seed.
      relative_seconds: time of an inner step over that of Adam's on the same machine in the same process, if measured.
      made: versions and commit.
    """

    task: str
    contender: str
    horizon: int
    setting: float
    tuning: tuple[tuple[float, float], ...]
    start: Float[np.ndarray, " seeds"]
    curves: Float[np.ndarray, "seeds points"]
    final: Float[np.ndarray, " seeds"]
    held_out: Float[np.ndarray, " seeds"]
    relative_seconds: float | None = None
    made: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def seeds(self) -> int:
        """How many runs there are."""
        return len(self.final)

    def pairs_with(self, other: "Record") -> bool:
        """Whether both are runs of the same task, seed by seed."""
        count = min(self.seeds, other.seeds)
        same = np.allclose(self.start[:count], other.start[:count], rtol=1e-3, atol=1e-6)
        return self.horizon == other.horizon and same


_ARRAYS = ("start", "curves", "final", "held_out")


class Records:
    """Records by task and contender.

    Example:
      >>> records = Records()
      >>> records.get("mlp", "Adam") is None, len(records)
      (True, 0)
    """

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self._records = {(record.task, record.contender): record for record in records}

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records.values())

    def __len__(self) -> int:
        return len(self._records)

    def get(self, task: str, contender: str) -> Record | None:
        """The record, if there is one."""
        return self._records.get((task, contender))

    def add(self, record: Record) -> None:
        """Adds a record, in the place of one of the same task and contender."""
        self._records[record.task, record.contender] = record

    def contenders(self) -> tuple[str, ...]:
        """Names of the contenders, in the order in which they came."""
        return tuple(dict.fromkeys(record.contender for record in self))

    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, in the order in which they came."""
        return tuple(dict.fromkeys(record.task for record in self))

    def write(self, path: str | Path) -> None:
        """Writes all records to a file of numpy's arrays, whole or not at all."""
        arrays: dict[str, Any] = {}
        about = []
        for number, record in enumerate(self):
            entry = dataclasses.asdict(record)
            for name in _ARRAYS:
                arrays[f"{number}.{name}"] = _shortened(entry.pop(name))
            entry["tuning"] = [[rate, loss if math.isfinite(loss) else None] for rate, loss in record.tuning]
            about.append(entry)
        text = json.dumps({"format": _FORMAT, "records": about})
        arrays["about"] = np.frombuffer(text.encode(), np.uint8)
        with replaced(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)

    @classmethod
    def read(cls, path: str | Path) -> "Records":
        """The records in a file; none if there is no such file.

        Raises:
          ValueError: the file holds something else.
        """
        if not Path(path).is_file():
            return cls()
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = dict(file)
            about = json.loads(arrays.pop("about").tobytes())
            if about["format"] != _FORMAT:
                raise ValueError(about["format"])
        except (ValueError, KeyError, OSError, EOFError) as error:
            raise ValueError(f"{path} must hold records of a suite, but does not: {error}. Move it away.") from error
        records = []
        for number, entry in enumerate(about["records"]):
            entry["tuning"] = tuple((rate, math.inf if loss is None else loss) for rate, loss in entry["tuning"])
            entry |= {name: arrays[f"{number}.{name}"].astype(np.float64) for name in _ARRAYS}
            records.append(Record(**entry))
        return cls(records)


def _shortened(x: np.ndarray) -> Float[np.ndarray, "..."]:
    """Numbers with 13 binary digits: four decimal ones, which a file holds in half the space."""
    digits, exponent = np.frexp(np.asarray(x, np.float64))
    return np.ldexp(np.round(digits * 2**13) / 2**13, exponent).astype(np.float32)


def bundled() -> Records:
    """The records of the baselines that come with the package."""
    return merged(*(Records.read(_BASELINES / f"{suite}.npz") for suite in ("unseen", "probe", "stress")))


def merged(*parts: Records) -> Records:
    """All records of several; later ones take the place of earlier ones."""
    return Records(record for part in parts for record in part)
