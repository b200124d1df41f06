"""What a task is: an inner network, its loss, and its data."""

from typing import Any, Protocol, TypeAlias, runtime_checkable

import jax
from jaxtyping import Array, ArrayLike, Float, PyTree

from optax_unf.infer import resolved
from optax_unf.spec.permutation_spec import PermutationSpec

Params: TypeAlias = PyTree[Float[ArrayLike, "..."]]
Batch: TypeAlias = Any


@runtime_checkable
class Task(Protocol):
    """A training problem. Implement these three methods, and any object is a task.

    They are traced by jax, so they must be pure. A task may also have an attribute `axes`: the permutation spec of its
    parameters, the spec's tree of names (see `optax_unf.make_spec`), or `optax_unf.Inferred`; without it every axis has
    a name of its own. An attribute `nfn_axes` takes its place for an NFN head, which wants the places of convolution
    kernels fixed.
    What reports name is `name` and `source`. `horizon` is the number of inner steps of a whole run, and `held_out()` a
    batch of data that training does not see, where an evaluation or a comparison wants them.
    With a method `of_run(key)`, each inner run trains on the task that this gives for its key; see
    `optax_unf.tasks.Rescaled`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> class Parabola:
      ...     def init(self, key):
      ...         return {"x": jax.random.normal(key, (2,))}
      ...     def sample(self, key):
      ...         return jax.random.normal(key, (2,))
      ...     def loss(self, params, batch):
      ...         return jnp.sum((params["x"] - 0.1 * batch) ** 2)
      >>> isinstance(Parabola(), Task)
      True
    """

    def init(self, key: Array) -> Params:
        """Fresh parameters of the inner network."""
        ...

    def sample(self, key: Array) -> Batch:
        """A batch of training data."""
        ...

    def loss(self, params: Params, batch: Batch) -> Float[Array, ""]:
        """The mean loss of a batch."""
        ...


def task_name(task: Task) -> str:
    """The task's `name`, or that of its class."""
    return getattr(task, "name", type(task).__name__)


def task_source(task: Task) -> str:
    """Where the task's data come from: its `source`, or nothing."""
    return getattr(task, "source", "")


def task_horizon(task: Task) -> int:
    """Inner steps of a whole run: the task's `horizon`.

    Raises:
      ValueError: the task has none.
    """
    if (horizon := getattr(task, "horizon", None)) is None:
        raise ValueError(
            f"The task {task_name(task)} must have an attribute horizon, the inner steps of a whole run, but has none. "
            f"Add one, or give the number of steps."
        )
    return horizon


def task_spec(task: Task, head: str = "unf") -> PermutationSpec:
    """The permutation spec of a task's parameters, from its `axes` where it has them.

    Args:
      task: the task.
      head: of the learned optimizer: `"nfn"` takes the task's `nfn_axes` where it has them.
    """
    axes = getattr(task, "nfn_axes", None) if head == "nfn" else None
    if axes is None:
        axes = getattr(task, "axes", None)
    return resolved(axes, jax.eval_shape(task.init, jax.random.key(0)))
