"""What a task is: an inner network, its loss, and its data."""

import abc
from typing import Any, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PyTree

from optax_unf.infer import resolved
from optax_unf.spec.permutation_spec import PermutationSpec

Params: TypeAlias = PyTree[Float[ArrayLike, "..."]]
Batch: TypeAlias = Any

METHODS = ("init", "sample", "loss")


@runtime_checkable
class TaskLike(Protocol):
    """Any object with these three methods serves as a task; they are traced by jax, so they must be pure.

    What else it has of the attributes and methods of `Task` is taken, and for the rest the defaults of `Task`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> class Parabola:
      ...     def init(self, key):
      ...         return {"x": jax.random.normal(key, (2,))}
      ...     def sample(self, key):
      ...         return jax.random.normal(key, (2,))
      ...     def loss(self, params, batch):
      ...         return jnp.sum((params["x"] - 0.1 * batch) ** 2)
      >>> isinstance(Parabola(), TaskLike)
      True
    """

    @abc.abstractmethod
    def init(self, key: Array) -> Params:
        """Fresh parameters of the inner network."""
        ...

    @abc.abstractmethod
    def sample(self, key: Array) -> Batch:
        """A batch of training data."""
        ...

    @abc.abstractmethod
    def loss(self, params: Params, batch: Batch) -> Float[Array, ""]:
        """The mean loss of a batch."""
        ...


class Task(TaskLike):
    """A training problem: the three methods of `TaskLike`, and defaults for what else is asked of a task.

    Attributes:
      name: what reports call it; that of the class by default.
      source: where the data come from.
      axes: the permutation spec of the parameters, the spec's tree of names (see `optax_unf.make_spec`), or
        `optax_unf.Inferred`; without it every axis has a name of its own.
      nfn_axes: takes its place for an NFN head, which wants the places of convolution kernels fixed.
      horizon: inner steps of a whole run, where nobody gives their number; `None` if there is no usual one.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> class Parabola(Task):
      ...     horizon = 100
      ...     def init(self, key):
      ...         return {"x": jax.random.normal(key, (2,))}
      ...     def sample(self, key):
      ...         return jax.random.normal(key, (2,))
      ...     def loss(self, params, batch):
      ...         return jnp.sum((params["x"] - 0.1 * batch) ** 2)
      >>> Parabola().name, Parabola().held_out()
      ('Parabola', None)
    """

    name: str
    source: str = ""
    axes: Any = None
    nfn_axes: Any = None
    horizon: Any = None

    def __getattr__(self, attribute: str) -> Any:
        # Not an attribute of the class: a dataclass would take it for the default of its field.
        if attribute == "name":
            return type(self).__name__
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {attribute!r}")

    def held_out(self) -> Batch:
        """A batch of data that training does not see; `None` where there is none."""
        return None

    def of_run(self, key: Array) -> TaskLike:
        """The task that the inner run with this key trains on: this one, or an augmentation, as of `Rescaled`."""
        del key
        return self


class _Adapted(Task):
    """An object with the three methods as a `Task`; equal for the same object."""

    def __init__(self, task: TaskLike) -> None:
        self.task = task
        self.name = getattr(task, "name", type(task).__name__)
        for attribute in ("source", "axes", "nfn_axes", "horizon", "held_out", "of_run"):
            if (found := getattr(task, attribute, None)) is not None:
                setattr(self, attribute, found)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Adapted) and self.task is other.task

    def __hash__(self) -> int:
        return id(self.task)

    def init(self, key: Array) -> Params:
        return self.task.init(key)

    def sample(self, key: Array) -> Batch:
        return self.task.sample(key)

    def loss(self, params: Params, batch: Batch) -> Float[Array, ""]:
        return self.task.loss(params, batch)


def as_task(task: TaskLike) -> Task:
    """The task itself, or, of another class with the three methods, one with the defaults of `Task`.

    Example:
      >>> from optax_unf import tasks
      >>> task = tasks.get("mlp-digits")
      >>> as_task(task) is task
      True
    """
    return task if isinstance(task, Task) else _Adapted(task)


def lacking(task: object) -> list[str]:
    """Which of the three methods an object lacks."""
    return [name for name in METHODS if not callable(getattr(task, name, None))]


def check_loss(task: TaskLike) -> None:
    """Refuses a task whose loss is not one floating-point number, such as one with auxiliary values.

    Raises:
      ValueError: it is something else.
    """
    params, batch = (jax.eval_shape(f, jax.random.key(0)) for f in (task.init, task.sample))
    loss = jax.eval_shape(task.loss, params, batch)
    if isinstance(loss, jax.ShapeDtypeStruct) and loss.shape == () and jnp.issubdtype(loss.dtype, jnp.floating):
        return
    found = f"a {type(loss).__name__}" if not isinstance(loss, jax.ShapeDtypeStruct) else f"{loss.dtype}{[*loss.shape]}"
    raise ValueError(
        f"The loss of a task must be one floating-point number, the mean of a batch, but that of {as_task(task).name} "
        f"is {found}. Auxiliary values stay out of it."
    )


def task_horizon(task: TaskLike) -> int:
    """Inner steps of a whole run: the task's `horizon`.

    Raises:
      ValueError: the task has none.
    """
    task = as_task(task)
    if task.horizon is None:
        raise ValueError(
            f"The task {task.name} must have an attribute horizon, the inner steps of a whole run, but has none. "
            f"Add one, or give the number of steps."
        )
    return task.horizon


def check_held_out(task: TaskLike) -> None:
    """Raises ValueError if a task has no held-out data."""
    task = as_task(task)
    if jax.eval_shape(task.held_out) is None:
        raise ValueError(
            f"A validation loss needs a task with a method `held_out()`, which returns a batch, but {task.name} has "
            f"none. Add one to its class."
        )


def task_spec(task: TaskLike, head: str = "unf") -> PermutationSpec:
    """The permutation spec of a task's parameters, from its `axes` where it has them.

    Args:
      task: the task.
      head: of the learned optimizer: `"nfn"` takes the task's `nfn_axes` where it has them.
    """
    whole = as_task(task)
    axes = whole.nfn_axes if head == "nfn" else None
    return resolved(whole.axes if axes is None else axes, jax.eval_shape(task.init, jax.random.key(0)))
