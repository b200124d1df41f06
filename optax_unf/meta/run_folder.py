"""The folder of a meta-training run: who works in it, and what a run leaves there."""

import contextlib
import importlib.util
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optax_unf._files import replaced, write_text
from optax_unf.meta.config import MetaTrainConfig
from optax_unf.meta.plot import plot_run
from optax_unf.optimizer.meta_weights import MetaWeights
from optax_unf.optimizer.weight_files import save_weights

if TYPE_CHECKING:
    from matplotlib.figure import Figure

try:
    import fcntl
except ModuleNotFoundError:  # Windows, where two processes on one folder go unnoticed
    fcntl = None


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Inside the `with` block, no other process meta-trains in this folder.

    Raises:
      ValueError: another process does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ValueError(
                    f"{folder} must belong to one process, but another one is meta-training there. Wait for it, stop "
                    f"it, or give another folder."
                ) from error
        yield


def holds_a_run(folder: Path) -> bool:
    """Whether there is something to lose: a start that failed before its first checkpoint leaves nothing."""
    checkpoints = folder / "checkpoints"
    return (folder / "weights.safetensors").exists() or (checkpoints.is_dir() and any(checkpoints.iterdir()))


def write_settings(folder: Path, config: MetaTrainConfig) -> None:
    """Writes `config.json`, from which `MetaTrainConfig.from_dict` makes the settings again."""
    write_text(folder / "config.json", json.dumps(config.to_dict(), indent=1) + "\n")


def write_results(folder: Path, weights: MetaWeights, card: Mapping[str, Any]) -> None:
    """Writes the best weights with their card, and the curves where matplotlib is installed."""
    save_weights(folder / "weights.safetensors", weights, card=card)
    if importlib.util.find_spec("matplotlib") is not None:
        write_figure(folder / "curves.png", plot_run(folder))


def write_figure(path: Path, figure: "Figure") -> None:
    """Writes a picture whole, in the format that the path ends in."""
    with replaced(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:] or None)
