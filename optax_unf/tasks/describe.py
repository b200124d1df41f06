"""What a task costs."""

import dataclasses
import math
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from optax_unf.tasks.task import TaskLike, as_task, task_spec


@dataclasses.dataclass(frozen=True)
class Description:
    """Sizes of a task, and the work of one of its training steps.

    Attributes:
      name: the task's name, or that of its class.
      source: where the data came from.
      parameters: how many numbers the inner network has.
      leaves: in how many arrays.
      axes: how many names of axes the permutation spec has.
      batch: shapes of the arrays of a batch.
      horizon: inner steps of one whole inner run, if the task says.
      flops: floating-point operations of the products and convolutions of one loss and its gradient.
    """

    name: str
    source: str
    parameters: int
    leaves: int
    axes: int
    batch: tuple[tuple[int, ...], ...]
    horizon: int | None
    flops: int

    def __str__(self) -> str:
        return "\n".join(
            (
                f"{self.name}" + (f": {self.source}" if self.source else ""),
                f"  parameters   {self.parameters:,} in {self.leaves} leaves, {self.axes} axes",
                f"  batch        {' and '.join(' x '.join(map(str, shape)) or 'scalar' for shape in self.batch)}",
                f"  horizon      {self.horizon if self.horizon else 'not set'}",
                f"  work         {self.flops / 1e6:.1f} million floating-point operations a step",
            )
        )


def describe(task: TaskLike) -> Description:
    """Sizes of a task and the work of one step; nothing is compiled or run.

    Args:
      task: any task; those with attributes `name`, `source` and `horizon` have them reported.

    Example:
      >>> from optax_unf import tasks
      >>> print(tasks.describe(tasks.get("mlp-digits")))
      mlp-digits: handwritten digits of scikit-learn
        parameters   3,466 in 6 leaves, 4 axes
        batch        128 x 64 and 128
        horizon      2000
        work         2.1 million floating-point operations a step
    """
    key = jax.random.key(0)
    params, batch = jax.eval_shape(task.init, key), jax.eval_shape(task.sample, key)
    whole, spec = as_task(task), task_spec(task)
    return Description(
        name=whole.name,
        source=whole.source,
        parameters=sum(x.size for x in jax.tree.leaves(params)),
        leaves=len(spec.leaves),
        axes=len(spec.sizes),
        batch=tuple(x.shape for x in jax.tree.leaves(batch)),
        horizon=whole.horizon,
        flops=_flops(jax.make_jaxpr(jax.value_and_grad(task.loss))(params, batch).jaxpr),
    )


def _flops(jaxpr: Jaxpr) -> int:
    # XLA's own count takes the body of a loop once, whatever its length.
    return sum(map(_flops_of, jaxpr.eqns))


def _flops_of(eqn: JaxprEqn) -> int:
    shapes: list[Any] = [variable.aval for variable in (*eqn.invars, *eqn.outvars)]
    if eqn.primitive.name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        return 2 * shapes[-1].size * math.prod(shapes[0].shape[axis] for axis in contracted)
    if eqn.primitive.name == "conv_general_dilated":
        kernel, features = shapes[1], eqn.params["dimension_numbers"].rhs_spec[0]
        return 2 * shapes[-1].size * kernel.size // kernel.shape[features]
    inner = [_flops(jaxpr) for jaxpr in _jaxprs(list(eqn.params.values()))]
    if eqn.primitive.name == "cond":
        return max(inner)
    return sum(inner) * (eqn.params["length"] if eqn.primitive.name == "scan" else 1)


def _jaxprs(param: Any) -> list[Jaxpr]:
    if isinstance(param, ClosedJaxpr):
        return [param.jaxpr]
    if isinstance(param, list | tuple):
        return [jaxpr for x in param for jaxpr in _jaxprs(x)]
    return [param] if isinstance(param, Jaxpr) else []
