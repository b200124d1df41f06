"""Progress bars, where tqdm is installed."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

_Item = TypeVar("_Item")


def progress_bar(items: Iterable[_Item], total: int, name: str) -> Iterable[_Item]:
    """The items, with a bar that shows how many of them have come."""
    try:
        from tqdm.auto import tqdm
    except ModuleNotFoundError:
        return items
    return tqdm(items, name, total, bar_format="{desc}: {n_fmt} of {total_fmt} [{elapsed}]")


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
            self._bar = tqdm(total=total, initial=done, unit="step")
            self._steps_until_time_left = 2
            self.compiling()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def compiling(self) -> None:
        """Shows that the next step takes longer, and is no measure of the time left."""
        if self._bar is not None:
            self._steps_until_time_left = 2
            self._bar.bar_format = "{desc}{n_fmt}/{total_fmt} [{elapsed}]{postfix}"
            self._bar.set_description("compiling (may take a minute)")

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
        self._steps_until_time_left -= 1
        if self._steps_until_time_left == 1:
            self._bar.unpause()  # the time that the compilation took is not that of a step
            self._bar.set_description("meta-training")
        elif self._steps_until_time_left == 0:
            self._bar.bar_format = None

    def evaluation(self, final_loss: float) -> None:
        """Shows the last evaluation's loss from the next step on."""
        self._shown["final"] = f"{final_loss:.4f}"
