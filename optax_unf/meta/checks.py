"""What meta-training refuses, before anything is compiled."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from optax_unf.optimizer.architecture import Architecture
from optax_unf.optimizer.meta_weights import MetaWeights, check_fits
from optax_unf.tasks.task import TaskLike, as_task, check_loss, lacking, task_spec


def named_tasks(task: TaskLike | Sequence[TaskLike]) -> dict[str, TaskLike]:
    """Tasks by their names; one of the class where a task has none, and numbered where several have the same."""
    # A task may be a tuple, too.
    tasks: list[Any] = [task] if isinstance(task, TaskLike | str) or not isinstance(task, Iterable) else list(task)
    if not tasks:
        raise ValueError("Meta-training needs at least one task, but the sequence of tasks is empty.")
    for one in tasks:
        if (missing := lacking(one)) or isinstance(one, type):
            raise TypeError(
                f"A task must be an object with the methods init, sample and loss, but {one!r} "
                f"{'is a class' if isinstance(one, type) else 'lacks ' + ', '.join(missing)}. optax_unf.tasks.get "
                f"makes one from a name."
            )
        check_loss(one)
    named: dict[str, TaskLike] = {}
    for one in tasks:
        name = base = as_task(one).name
        number = 1
        while name in named:
            number += 1
            name = f"{base}-{number}"
        named[name] = one
    return named


def check_spaces(architecture: Architecture, tasks: dict[str, TaskLike]) -> None:
    """Refuses tasks of different weight spaces for an architecture that fits one only."""
    if not architecture.fits_one_space:
        return
    (first, space), *others = ((name, task_spec(task, architecture.head)) for name, task in tasks.items())
    for name, other in others:
        try:
            check_fits(space, other)
        except ValueError as error:
            raise ValueError(
                f"Tasks that are meta-trained on together must have one weight space, or the architecture must fit any "
                f"(coefficients='tied', or head='deepsets' or 'none'), but {name} differs from {first}: {error}"
            ) from error


def check_start(weights: MetaWeights, architecture: Architecture, tasks: dict[str, TaskLike]) -> None:
    """Refuses weights of another architecture."""
    found, wanted = dataclasses.asdict(weights.architecture), dataclasses.asdict(architecture)
    for name, value in wanted.items():
        if found[name] != value:
            raise ValueError(
                f"The weights to start from must be of the architecture that is trained, but their {name} is "
                f"{found[name]!r}, not {value!r}. transfer_weights makes such weights from others."
            )
    for task in tasks.values():
        check_fits(weights.spec, task_spec(task, architecture.head))
