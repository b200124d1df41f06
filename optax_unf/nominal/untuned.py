"""A step size that is found, and a whole optimizer with nothing to tune."""

import functools
from typing import Any

import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optax_unf._arguments import check_total_steps
from optax_unf.infer import Spec
from optax_unf.nominal.distance import scale_by_distance
from optax_unf.nominal.orthogonal import scale_by_orthogonal
from optax_unf.nominal.schedule import over_run
from optax_unf.nominal.units import in_units

# The length that is assumed of a run that does not say.
_USUAL_STEPS = 1000
# In units of the parameters: the first estimate of the distance, and the size of steps in a run of one step.
_INITIAL, _GUESS = 0.02, 6.0


def scale_by_found_step(
    direction: optax.GradientTransformation,
    total_steps: ArrayLike | None = None,
    *,
    spec: Spec = None,
    factor: optax.ScalarOrSchedule = 1.0,
) -> optax.GradientTransformationExtraArgs:
    r"""Multiplies the steps of a direction by a size that is found while training, and by a cosine to zero.

    In units of the initial parameters (`in_units`), steps have the size $\sqrt{d \cdot 6 / \sqrt{T}}$: the geometric
    mean of the estimated distance d (`scale_by_distance`), which begins at 0.02, and of a size that alone would be a
    fair guess for a run of T steps. Either corrects the other where it is wrong by some factor. Nothing depends on the
    scale of the loss or of the parameters.

    Args:
      direction: a transformation whose results have about unit size, whatever the scale of the gradients.
      total_steps: updates in the whole run. Without it there is no cosine, and a run of 1,000 is assumed.
      spec: tells which arrays are matrices; see `find_matrices`.
      factor: multiplies the step: a number, traced or not, or a schedule that the cosine multiplies.

    Returns:
      A transformation whose `update` requires `params`. Its results are to be subtracted: follow it with
      `optax.scale(-1.0)`.

    Raises:
      TypeError: `total_steps` is no integer.
      ValueError: `total_steps` is not positive.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> tx = optax.chain(scale_by_found_step(optax.scale_by_adam(), 100), optax.scale(-1.0))
      >>> params = jnp.array([3.0, -4.0])
      >>> updates, _ = tx.update(params, tx.init(params), params)
      >>> bool((jnp.sign(updates) == -jnp.sign(params)).all())
      True
    """
    check_total_steps(total_steps)
    guess = _GUESS / jnp.sqrt(jnp.asarray(_USUAL_STEPS if total_steps is None else total_steps, jnp.float32))

    steps = scale_by_distance(
        direction,
        factor=functools.partial(over_run, factor, total_steps),
        step_size=lambda distance: jnp.sqrt(distance * guess),
        initial=_INITIAL,
        b1=0.0,
        b2=0.0,
    )
    return in_units(steps, spec)


def orthogonal_prodigy(
    total_steps: int, *, spec: Spec = None, factor: optax.ScalarOrSchedule = 1.0, **options: Any
) -> optax.GradientTransformationExtraArgs:
    """Orthogonalized momentum with Adam's size, and a step size that is found: nothing to tune.

    Args:
      total_steps: updates in the whole run. The count lives in the state; past the end, updates are zero.
      spec: tells which arrays are matrices; see `find_matrices`.
      factor: multiplies the step: a number, traced or not, or a schedule that the cosine multiplies.
      **options: of `scale_by_orthogonal`; its momentum is 0.9 here.

    Returns:
      A transformation whose `update` requires `params`.

    Raises:
      TypeError: `total_steps` is no integer.
      ValueError: `total_steps` is not positive.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> params = jnp.zeros((3, 2))
      >>> tx = orthogonal_prodigy(300)
      >>> state = tx.init(params)
      >>> for _ in range(300):
      ...     updates, state = tx.update(jax.grad(lambda w: jnp.sum((w - 1) ** 2))(params), state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> bool(jnp.abs(params - 1).max() < 0.1)
      True
    """
    direction = scale_by_orthogonal(spec, **{"momentum": 0.9, **options})
    return optax.chain(scale_by_found_step(direction, total_steps, spec=spec, factor=factor), optax.scale(-1.0))
