"""Inner runs: the training of a task network by the optimizer under study."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from optax_unf.optimizer.architecture import Architecture
from optax_unf.optimizer.meta_weights import MetaWeights
from optax_unf.optimizer.unf import unf
from optax_unf.tasks.task import TaskLike, as_task, task_spec

Theta = PyTree[Float[ArrayLike, "..."]]

# More are not kept for a backward pass: those of a small Transformer, of 1.4 MB each, would fill the memory.
_KEPT_RUNS = 2000


@runtime_checkable
class InnerProblem(Protocol):
    """What a gradient estimator needs to know: a computation that theta steers, step by step.

    Both methods are pure; all randomness of a run follows from the key that it starts with, so that two runs with
    equal keys differ by their theta alone.
    """

    def start(self, theta: Theta, key: Array) -> Any:
        """A fresh run."""
        ...

    def step(self, theta: Theta, run: Any) -> tuple[Any, Float[Array, ""]]:
        """The run one step on, and the loss before that step."""
        ...


class InnerRun(NamedTuple):
    """The state of one inner run.

    Attributes:
      params: parameters of the task network.
      optimizer: the optimizer's state.
      steps: number of steps so far.
      key: the key that every batch of the run is drawn from, and the task of the run if that is random.
    """

    params: PyTree
    optimizer: Any
    steps: Int[Array, ""]
    key: Array


@dataclasses.dataclass(frozen=True)
class Training:
    """Training of a task's network by an optimizer that theta steers: an `InnerProblem`.

    Optimizers that start with the same key see the same initial parameters and the same batches.

    Attributes:
      task: the task.
      optimizer: from theta to an optax optimizer; `theta` may be a learning rate as well as meta-weights.
    """

    task: TaskLike
    optimizer: Callable[[Theta], optax.GradientTransformation]

    def start(self, theta: Theta, key: Array) -> InnerRun:
        """Fresh parameters and optimizer state."""
        init_key, batch_key = jax.random.split(key)
        params = self._task_of_run(batch_key).init(init_key)
        return InnerRun(params, self.optimizer(theta).init(params), jnp.zeros([], jnp.int32), batch_key)

    def step(self, theta: Theta, run: InnerRun) -> tuple[InnerRun, Float[Array, ""]]:
        """One training step, on a batch drawn for it."""
        task = self._task_of_run(run.key)
        batch = task.sample(jax.random.fold_in(run.key, run.steps))
        loss, grads = jax.value_and_grad(task.loss)(run.params, batch)
        updates, state = self.optimizer(theta).update(grads, run.optimizer, run.params)
        params = optax.apply_updates(run.params, updates)
        return InnerRun(params, state, run.steps + 1, run.key), loss

    def _task_of_run(self, key: Array) -> TaskLike:
        return as_task(self.task).of_run(key)


def learned_training(architecture: Architecture, task: TaskLike, horizon: int | None = None) -> Training:
    """Training of a task by the learned optimizer of this architecture, theta being its meta-weights' arrays.

    Args:
      architecture: the architecture.
      task: the task.
      horizon: inner steps of a whole run. A step size that is found while training needs to know it, and falls to zero
        along a cosine; alpha does not, as in the paper.
    """
    spec = task_spec(task, architecture.head)
    steps = horizon if architecture.step == "distance" else None

    def optimizer(theta: Theta) -> optax.GradientTransformation:
        return unf(MetaWeights(theta, architecture, None), total_steps=steps, spec=spec, tile_entries=0)

    return Training(task, optimizer)


def unroll(
    problem: InnerProblem, theta: Theta, run: Any, length: int, *, rematerialize: bool = False
) -> tuple[Any, Float[Array, " length"]]:
    """`length` steps of a run under one `lax.scan`, and the loss before each.

    Args:
      problem: the inner problem.
      theta: the meta-weights' arrays.
      run: where to start.
      length: number of steps.
      rematerialize: keep only the runs between the steps for the backward pass, and recompute the rest. Of more than
        2,000 steps keep some runs only, and recompute the others as well, which takes about a third more time.
    """

    def step(run: Any, _: None) -> tuple[Any, Float[Array, ""]]:
        return problem.step(theta, run)

    if not rematerialize:
        return jax.lax.scan(step, run, length=length)
    step = jax.checkpoint(step, prevent_cse=False)
    if length <= _KEPT_RUNS:
        return jax.lax.scan(step, run, length=length)
    # The divisor next to the root keeps least.
    part = max(n for n in range(1, math.isqrt(length) + 1) if length % n == 0)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def steps(run: Any, _: None) -> tuple[Any, Float[Array, " part"]]:
        return jax.lax.scan(step, run, length=part)

    run, losses = jax.lax.scan(steps, run, length=length // part)
    return run, losses.reshape(length)
