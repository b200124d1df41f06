"""A whole optimizer with nothing to tune."""

from typing import Any

import optax

from optax_unf.infer import Spec
from optax_unf.nominal.distance import scale_by_distance
from optax_unf.nominal.orthogonal import scale_by_orthogonal


def orthogonal_prodigy(
    total_steps: int, *, spec: Spec = None, factor: optax.ScalarOrSchedule = 1.0, **options: Any
) -> optax.GradientTransformationExtraArgs:
    """Orthogonalized momentum with Adam's size, Prodigy's distance, and a cosine to zero: nothing to tune.

    Args:
      total_steps: updates in the whole run. The count lives in the state; past the end, updates are zero.
      spec: tells which arrays are matrices; see `find_matrices`.
      factor: multiplies the step: a number, traced or not, or a schedule that the cosine multiplies.
      **options: of `scale_by_orthogonal`.

    Returns:
      A transformation whose `update` requires `params`.

    Raises:
      ValueError: `total_steps` is not a positive integer.

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
    if isinstance(total_steps, bool) or not isinstance(total_steps, int) or total_steps < 1:
        raise ValueError(f"total_steps must be a positive integer, the updates in the run, but is {total_steps!r}.")
    cosine = optax.cosine_decay_schedule(1.0, total_steps)

    def scheduled(count: Any) -> Any:
        return cosine(count) * (factor(count) if callable(factor) else factor)

    return optax.chain(scale_by_distance(scale_by_orthogonal(spec, **options), factor=scheduled), optax.scale(-1.0))
