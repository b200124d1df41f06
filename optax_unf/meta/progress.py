"""The progress bar of a meta-training run."""

from collections.abc import Mapping
from typing import Any


class Progress:
    """A tqdm bar if tqdm is installed and the caller wants one, else nothing.

    Args:
      total: outer steps of the whole run.
      done: outer steps before this process.
      wanted: whether to show the bar.
    """

    def __init__(self, total: int, done: int, wanted: bool) -> None:
        self._bar: Any = None
        self._shown: dict[str, str] = {}
        if wanted:
            try:
                from tqdm.auto import tqdm
            except ModuleNotFoundError:
                return
            self._bar = tqdm(total=total, initial=done, unit="step", desc="meta-training")

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def step(self, number: int, metrics: Mapping[str, float]) -> None:
        """Shows that outer step `number` is done, with its loss, gradient norm and inner steps per second."""
        if self._bar is None:
            return
        self._shown |= {
            "loss": f"{metrics['loss']:.3f}",
            "grad": f"{metrics['grad_norm']:.2g}",
            "inner/s": f"{metrics['inner_steps_per_second']:.0f}",
        }
        self._bar.set_postfix(self._shown, refresh=False)
        self._bar.update(number - self._bar.n)

    def evaluation(self, final_loss: float) -> None:
        """Shows the last evaluation's loss from the next step on."""
        self._shown["final"] = f"{final_loss:.4f}"
