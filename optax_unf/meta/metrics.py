"""What a meta-training run reports while it runs: JSON lines, TensorBoard events, the progress bar."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jaxtyping import ArrayLike, Num

from optax_unf._files import write_text
from optax_unf.meta.progress import Progress


class MetricsFiles:
    """`FOLDER/metrics.jsonl`, and events under `FOLDER/tensorboard` where tensorboardX is installed.

    Each line is a JSON object with a `step`; numbers that are not finite are `null`. A run that continues from step n
    drops the lines and events of later steps, which it will write again.

    Args:
      folder: the run's folder; `None` to write nothing.
      step: the outer step to continue after.

    Example:
      >>> import tempfile
      >>> folder = Path(tempfile.mkdtemp())
      >>> for after in (0, 1):
      ...     with MetricsFiles(folder, after) as files:
      ...         for step in (1, 2):
      ...             files.write({"step": step + after, "loss": 0.5})
      >>> print((folder / "metrics.jsonl").read_text(), end="")
      {"step": 1, "loss": 0.5}
      {"step": 2, "loss": 0.5}
      {"step": 3, "loss": 0.5}
    """

    def __init__(self, folder: Path | None, step: int) -> None:
        self._file = self._events = None
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "metrics.jsonl"
        _drop_later(path, step)
        self._file = path.open("a", buffering=1, encoding="utf-8")
        try:
            from tensorboardX import SummaryWriter
        except ModuleNotFoundError:
            return
        self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)

    def __enter__(self) -> "MetricsFiles":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file:
            self._file.close()
        if self._events:
            self._events.close()

    def write(self, record: Mapping[str, float]) -> None:
        """Appends one record; its numbers are TensorBoard's scalars at its `step`."""
        if self._file:
            finite = {name: value if math.isfinite(value) else None for name, value in record.items()}
            self._file.write(json.dumps(finite) + "\n")
        if self._events:
            for name, value in record.items():
                if name != "step" and math.isfinite(value):
                    self._events.add_scalar(name, value, int(record["step"]))

    def flush(self) -> None:
        """Hands everything written so far to the operating system."""
        if self._file:
            self._file.flush()
        if self._events:
            self._events.flush()


class Reporter:
    """Reports a run's steps and evaluations without keeping the device waiting.

    The metrics of a step are fetched when the next one has been dispatched, so that the device always has work.
    Where a step's numbers are needed at once, `flush`.

    Args:
      folder: where to write the metrics; `None` for nowhere.
      done: outer steps before this process.
      total: outer steps of the whole run.
      progress: whether to show a progress bar.
    """

    def __init__(self, folder: Path | None, done: int, total: int, progress: bool) -> None:
        self._files = MetricsFiles(folder, done)
        self._bar = Progress(total, done, progress)
        self._pending: tuple[dict[str, int], int, Mapping[str, Any]] | None = None
        self._last = time.perf_counter()

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.__exit__()
        self._files.__exit__()

    def compiling(self) -> None:
        """Shows that the next step is compiled first."""
        self._bar.compiling()

    def step(self, number: int, stage: int, inner_steps: int, metrics: Mapping[str, Num[ArrayLike, ""]]) -> None:
        """Reports the step before this one.

        Args:
          number: of the outer step, counted over the whole run from 1.
          stage: its stage, from 0.
          inner_steps: inner steps that it takes, of all particles together.
          metrics: its metrics, which may still be under way on the device.
        """
        self._fetch()
        self._pending = {"step": number, "stage": stage}, inner_steps, metrics

    def evaluation(self, number: int, stage: int, result: Mapping[str, float]) -> None:
        """Reports an evaluation after outer step `number`."""
        self.flush()
        now = time.perf_counter()
        self._files.write({"step": number, "stage": stage, **result, "seconds": now - self._last})
        self._last = now
        self._bar.evaluation(result["final_loss"])

    def flush(self) -> None:
        """Waits for the step under way, and writes all metrics so far."""
        self._fetch()
        self._files.flush()

    def restart_clock(self) -> None:
        """Leaves the time since the last report out of the next one's `seconds`."""
        self._last = time.perf_counter()

    def _fetch(self) -> None:
        if self._pending is None:
            return
        (numbers, inner_steps, metrics), self._pending = self._pending, None
        values = {name: x.item() for name, x in jax.device_get(dict(metrics)).items()}
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        values |= {"seconds": seconds, "inner_steps_per_second": inner_steps / seconds}
        self._files.write({**numbers, **values})
        self._bar.step(numbers["step"], values)


def _drop_later(path: Path, step: int) -> None:
    """Cuts the lines after a step off a file, and a last line that was not finished."""
    if not path.exists():
        return
    kept = []
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if not step or not line.endswith("\n") or json.loads(line)["step"] > step:
                break
            kept.append(line)
    write_text(path, "".join(kept))
