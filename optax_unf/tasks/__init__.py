"""Inner tasks for meta-training and their data."""

from collections.abc import Callable
from pathlib import Path

from optax_unf.tasks.images import digits, fashion_mnist
from optax_unf.tasks.mlp import MLPTask as MLPTask
from optax_unf.tasks.task import Task as Task
from optax_unf.tasks.task import task_spec as task_spec


def _mlp_digits(data_dir: str | Path | None) -> MLPTask:
    del data_dir  # scikit-learn ships the images
    return MLPTask("mlp-digits", *digits())


def _mlp_fashion_mnist(data_dir: str | Path | None) -> MLPTask:
    return MLPTask("mlp-fashion-mnist", *fashion_mnist(8, data_dir))


_TASKS: dict[str, Callable[[str | Path | None], MLPTask]] = {
    "mlp-digits": _mlp_digits,
    "mlp-fashion-mnist": _mlp_fashion_mnist,
}


def names() -> tuple[str, ...]:
    """Names of the tasks that `get` knows."""
    return tuple(_TASKS)


def get(name: str, *, data_dir: str | Path | None = None) -> MLPTask:
    """A task by name, with its data loaded.

    Args:
      name: one of `names()`.
      data_dir: folder with the original data files. By default the environment variable `OPTAX_UNF_DATA`; without
        it, files are downloaded once into the user's cache.

    Raises:
      ValueError: there is no such task.
      FileNotFoundError: `data_dir` lacks a file.

    Example:
      >>> get("mlp-digits").widths
      (64, 32, 32, 10)
    """
    if name not in _TASKS:
        raise ValueError(f"The task must be one of {', '.join(_TASKS)}, but is {name!r}.")
    return _TASKS[name](data_dir)
