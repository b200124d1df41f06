"""Augmentation of a task: its parameters in other units."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from optax_unf.tasks.task import Batch, Params, Task, TaskLike, as_task

Scales = PyTree[Float[Array, ""]]


@dataclasses.dataclass(frozen=True, eq=False)
class Rescaled(Task):
    """A task whose parameters are `scale * inner`, with random scales of its own in each inner run.

    The optimizer sees `inner`: the same functions and losses, but gradients `scale` times, weights `1 / scale` times as
    large, so that it cannot rely on the units of one task (Metz et al. 2022, arXiv:2211.09760). Each leaf has one
    scale, log-uniform between `low` and `high`; the permutation spec stays what it is. Meta-training and its
    evaluations take the scales that `of_run` draws; `loss`, `init` and `sample` are those of the task itself.

    Attributes:
      task: the task.
      low: the smallest scale.
      high: the largest scale.

    Example:
      >>> from optax_unf import tasks
      >>> task = tasks.Rescaled(tasks.get("mlp-digits"))
      >>> run = task.of_run(jax.random.key(0))
      >>> params = run.init(jax.random.key(1))
      >>> batch = run.sample(jax.random.key(2))
      >>> bool(jnp.isclose(run.loss(params, batch), task.loss(task.init(jax.random.key(1)), batch)))
      True
    """

    task: TaskLike
    low: float = 0.01
    high: float = 100.0

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high < math.inf:
            raise ValueError(
                f"Scales must be positive and finite, low at most high, but low is {self.low} and high {self.high}."
            )

    @property
    def name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The task's name and the range."""
        return f"{as_task(self.task).name}-rescaled-{self.low:g}-{self.high:g}"

    @property
    def axes(self) -> Any:
        """The task's own names of axes."""
        return as_task(self.task).axes

    @property
    def nfn_axes(self) -> Any:
        """The task's own names of axes for an NFN head."""
        return as_task(self.task).nfn_axes

    @property
    def horizon(self) -> Any:
        """The task's own."""
        return as_task(self.task).horizon

    def init(self, key: Array) -> Params:
        """Fresh parameters, not rescaled."""
        return self.task.init(key)

    def sample(self, key: Array) -> Batch:
        """A batch of training data."""
        return self.task.sample(key)

    def loss(self, params: Params, batch: Batch) -> Float[Array, ""]:
        """The mean loss of a batch, of parameters that are not rescaled."""
        return self.task.loss(params, batch)

    def of_run(self, key: Array) -> "InUnits":
        """The task with the scales that follow from a run's key."""
        leaves, treedef = jax.tree.flatten(jax.eval_shape(self.task.init, key))
        # A number that counts no step: batches are drawn from the same key.
        uniform = jax.random.uniform(jax.random.fold_in(key, 2**32 - 1), (len(leaves),))
        scales = jnp.exp(math.log(self.low) + uniform * math.log(self.high / self.low))
        return InUnits(self.task, treedef.unflatten(list(scales)))


@dataclasses.dataclass(frozen=True, eq=False)
class InUnits(Task):
    """A task in which parameter trees are divided by `scales`.

    Attributes:
      task: the task.
      scales: one number for each leaf of its parameters.
    """

    task: TaskLike
    scales: Scales

    def init(self, key: Array) -> Params:
        """Fresh parameters, divided by the scales."""
        return jax.tree.map(lambda x, scale: x / scale.astype(x.dtype), self.task.init(key), self.scales)

    def sample(self, key: Array) -> Batch:
        """A batch of training data."""
        return self.task.sample(key)

    def loss(self, params: Params, batch: Batch) -> Float[Array, ""]:
        """The mean loss of a batch."""
        return self.task.loss(jax.tree.map(lambda x, scale: x * scale.astype(x.dtype), params, self.scales), batch)
