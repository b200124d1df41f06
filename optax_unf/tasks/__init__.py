"""Inner tasks for meta-training and their data."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from optax_unf._imported import did_you_mean, imported
from optax_unf.tasks.classification import Classification as Classification
from optax_unf.tasks.cnn import CNNTask as CNNTask
from optax_unf.tasks.data.cifar10 import cifar10
from optax_unf.tasks.data.images import digits, fashion_mnist
from optax_unf.tasks.data.text import lm1b
from optax_unf.tasks.data.tokens import byte_pair_tokens
from optax_unf.tasks.describe import Description as Description
from optax_unf.tasks.describe import describe as describe
from optax_unf.tasks.language import LanguageModel as LanguageModel
from optax_unf.tasks.mlp import MLPTask as MLPTask
from optax_unf.tasks.rescaled import Rescaled as Rescaled
from optax_unf.tasks.rnn import RNNTask as RNNTask
from optax_unf.tasks.task import Task as Task
from optax_unf.tasks.task import TaskLike as TaskLike
from optax_unf.tasks.task import as_task as as_task
from optax_unf.tasks.task import check_loss, lacking
from optax_unf.tasks.task import task_spec as task_spec
from optax_unf.tasks.transformer import TransformerTask as TransformerTask

DataDir: TypeAlias = str | Path | None


def _mlp_digits(name: str, data_dir: DataDir) -> MLPTask:
    del data_dir  # scikit-learn ships the images
    return MLPTask(name, *digits(), source="handwritten digits of scikit-learn")


def _mlp_fashion_mnist(name: str, data_dir: DataDir) -> MLPTask:
    return MLPTask(name, *fashion_mnist(8, data_dir), source="Fashion-MNIST, 8 x 8 pixels")


def _cnn_cifar10(name: str, data_dir: DataDir, size: int = 8) -> CNNTask:
    return CNNTask(name, *cifar10(size, data_dir), source=f"CIFAR-10, {size} x {size} pixels")


def _rnn_lm1b(name: str, data_dir: DataDir, **sizes: int) -> RNNTask:
    text = lm1b(data_dir)
    train, test = (np.frombuffer(part, np.uint8) for part in (text.train, text.test))
    return RNNTask(name, train, test, 256, source=text.source, **sizes)


def _transformer_lm1b(name: str, data_dir: DataDir, vocabulary: int) -> TransformerTask:
    text = lm1b(data_dir)
    return TransformerTask(name, *byte_pair_tokens(text, vocabulary), vocabulary, source=text.source)


_TASKS: dict[str, tuple[Callable[..., Classification | LanguageModel], dict[str, Any]]] = {
    "mlp-digits": (_mlp_digits, {}),
    "mlp-fashion-mnist": (_mlp_fashion_mnist, {}),
    "cnn-cifar10": (_cnn_cifar10, {}),
    "cnn-cifar10-16": (_cnn_cifar10, {"size": 16}),
    "rnn-lm1b": (_rnn_lm1b, {}),
    "rnn-lm1b-small": (_rnn_lm1b, {"embedding": 16, "hidden": 32, "batch_size": 32}),
    "transformer-lm1b": (_transformer_lm1b, {"vocabulary": 32_000}),
    "transformer-lm1b-small": (_transformer_lm1b, {"vocabulary": 512}),
}


def names() -> tuple[str, ...]:
    """Names of the tasks that `get` knows."""
    return tuple(_TASKS)


def check_name(name: str) -> None:
    """Raises ValueError if `get` knows no task of this name."""
    if name not in _TASKS and ":" not in name:
        raise ValueError(
            f"The task must be one of {', '.join(_TASKS)}, or your own as module:attribute or file.py:attribute, but "
            f"is {name!r}.{did_you_mean(name, _TASKS)}"
        )


def get(name: str, *, data_dir: DataDir = None) -> Any:
    """A task by name, with its data loaded: a `Classification` or a `LanguageModel`.

    Args:
      name: one of `names()`; or a task of your own as `module:attribute` or `file.py:attribute`, an instance, or a
        class or function that makes one.
      data_dir: folder with the original data files. By default the environment variable `OPTAX_UNF_DATA`; without
        it, images are downloaded once into the user's cache, and text is what comes with Python.

    Raises:
      ValueError: there is no such task, or yours lacks a method.
      FileNotFoundError: `data_dir` lacks a file.

    Example:
      >>> get("mlp-digits").widths
      (64, 32, 32, 10)
    """
    check_name(name)
    if ":" in name:
        return _own(name)
    make, sizes = _TASKS[name]
    return make(name, data_dir, **sizes)


def _own(source: str) -> Any:
    found = imported(source)
    task: Any = found() if callable(found) else found
    if missing := lacking(task):
        raise ValueError(f"The task {source} must have init, sample and loss, but lacks {', '.join(missing)}.")
    if not hasattr(task, "name"):
        object.__setattr__(task, "name", source.rpartition(":")[2])  # frozen dataclasses, too
    check_loss(task)
    return task
