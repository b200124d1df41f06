"""A learned optimizer as a whole: Eq. 31, its step size, and a schedule over the run."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from optax_unf._arguments import check_factor, check_total_steps
from optax_unf.infer import Spec
from optax_unf.nominal.schedule import over_run
from optax_unf.nominal.untuned import scale_by_found_step
from optax_unf.optimizer.meta_weights import MetaWeights
from optax_unf.optimizer.scale_by_unf import Weights, scale_by_unf
from optax_unf.optimizer.weight_files import load_weights


def unf(
    weights: Weights = "universal",
    *,
    total_steps: int | None = None,
    factor: optax.ScalarOrSchedule = 1.0,
    spec: Spec = None,
    weight_decay: float | Float[Array, ""] = 0.0,
    weight_decay_mask: Any | Callable[[optax.Params], Any] | None = None,
    accumulator_dtype: DTypeLike | None = None,
    tile_entries: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""A learned optimizer: Eq. 31 of Zhou, Finn & Harrison 2024 (arXiv:2402.05232).

    $$ W_{t+1} = W_t - \alpha (m_t^{\gamma_0} + \beta f(W_t, \nabla_t, \{m_t^{\gamma_i}\}_i, t)) $$

    The default, `"universal"`, trains any network with nothing to tune but the number of steps. Its nominal term is
    `scale_by_soap`, which treats matrices in a way of their own (see `describe_matrices`), and its step size is found
    while training. So there is no learning rate to give. A `factor` of 0.5 makes steps half as large as the optimizer
    finds right.

    Args:
      weights: a name of `optax_unf.list_pretrained()`, a path, or meta-weights.
      total_steps: updates in the whole run. The step then falls to zero along a cosine, and updates past the end are
        zero. The count lives in the state, so that a resumed run goes on where it was. Without it, the step is not
        scheduled, which ends at a higher loss.
      factor: multiplies the step: a number or an optax schedule, which the cosine multiplies.
      spec: see `scale_by_unf`.
      weight_decay: decoupled, as in `optax.adamw`: this part of the parameters is added to the direction.
      weight_decay_mask: as in `optax.adamw`: a tree of booleans, or a function of the parameters that returns one.
      accumulator_dtype: see `scale_by_unf`.
      tile_entries: see `scale_by_unf`.

    Returns:
      A transformation whose `update` requires `params`.

    Raises:
      ValueError: see `scale_by_unf`; or `total_steps` is not positive.
      TypeError: see `scale_by_unf`; or `factor` is neither a number nor a schedule, `total_steps` no integer.

    Example:
      >>> import jax, jax.numpy as jnp, optax, optax_unf
      >>> def loss(params):
      ...     return jnp.sum((params["w"] - 1.0) ** 2)
      >>> params = {"w": jnp.zeros((3, 2))}
      >>> tx = optax_unf.unf(total_steps=200)
      >>> state = tx.init(params)
      >>> for _ in range(200):
      ...     updates, state = tx.update(jax.grad(loss)(params), state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> bool(loss(params) < 0.1)
      True
    """
    if not isinstance(weights, MetaWeights):
        weights = load_weights(weights)
    check_total_steps(total_steps)
    check_factor(factor)

    direction = scale_by_unf(
        weights, total_steps=total_steps, spec=spec, accumulator_dtype=accumulator_dtype, tile_entries=tile_entries
    )
    if not isinstance(weight_decay, int | float) or weight_decay:
        decay = optax.add_decayed_weights(weight_decay, weight_decay_mask)  # pyright: ignore[reportArgumentType]
        direction = optax.chain(direction, decay)

    if weights.architecture.step == "distance":
        size = functools.partial(_step_size, weights.alpha, None, factor)
        return optax.chain(scale_by_found_step(direction, total_steps, spec=spec, factor=size), optax.scale(-1.0))
    size = functools.partial(_step_size, weights.alpha, total_steps, factor)
    if total_steps is None and not callable(factor):
        return optax.chain(direction, optax.stateless(functools.partial(_descend, size(0))))
    return optax.chain(direction, optax.scale_by_learning_rate(size))


def _descend(size: Float[Array, ""], direction: optax.Updates, params: optax.Params | None) -> optax.Updates:
    del params
    # The size is float32, and would promote the updates of narrower parameters.
    return jax.tree.map(lambda d: -size.astype(d.dtype) * d, direction)


def _step_size(
    alpha: Float[Array, ""], total_steps: int | None, factor: optax.ScalarOrSchedule, count: jax.typing.ArrayLike
) -> Float[Array, ""]:
    """alpha, times the factor, times a cosine from 1 to 0."""
    return alpha * over_run(factor, total_steps, count)
