"""The progress bar of a meta-training run."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

from jaxtyping import Array


class Progress:
    """A tqdm bar if tqdm is installed and the caller wants one, else nothing."""

    def __init__(self, total: int, wanted: bool) -> None:
        self._bar: Any = None
        if wanted:
            try:
                from tqdm.auto import tqdm
            except ModuleNotFoundError:
                return
            self._bar = tqdm(total=total, unit="step", desc="meta-training")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, step: int, metrics: Mapping[str, Array], curve: Sequence[Mapping[str, float]]) -> None:
        """Shows outer step `step` with its loss, gradient norm, and the last evaluation."""
        if self._bar is None:
            return
        shown = {"loss": f"{float(metrics['loss']):.3f}", "grad": f"{float(metrics['grad_norm']):.2g}"}
        if curve:
            shown["final"] = f"{curve[-1]['final_loss']:.4f}"
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(step - self._bar.n)
