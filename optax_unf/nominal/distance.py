"""The size of steps, from an estimate of the distance to the solution."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from optax_unf._arguments import check_real
from optax_unf._dtypes import at_least_float32
from optax_unf._sharding import replicated


class ScaleByDistanceState(NamedTuple):
    """State of `scale_by_distance`.

    Attributes:
      count: number of updates so far, int32 [].
      distance: the estimate d, float32 [].
      numerator: the weighted sum of products of gradients and distances travelled, float32 [].
      grad_sum: a tree like the parameters, at least float32: the weighted sum of gradients.
      origin: a tree like the parameters: x_0, or for leaves narrower than float32 the sum of steps so far, in float32.
      direction: the state of the direction.
    """

    count: Int[Array, ""]  # pyright: ignore[reportIncompatibleMethodOverride] (optax names it so)
    distance: Float[Array, ""]
    numerator: Float[Array, ""]
    grad_sum: PyTree
    origin: PyTree
    direction: Any


def l1_norm(tree: PyTree) -> Float[Array, ""]:
    """The sum of absolute values: dual to the steps of Adam, which are about as large in every entry."""
    return _total(jnp.sum(jnp.abs(x)) for x in jax.tree.leaves(tree))


def scale_by_distance(
    direction: optax.GradientTransformation,
    *,
    factor: optax.ScalarOrSchedule = 1.0,
    norm: Callable[[PyTree], Float[Array, ""]] = l1_norm,
    decay: float = 0.999**0.5,
    initial: float = 1e-6,
    b1: float = 0.9,
    b2: float = 0.999,
) -> optax.GradientTransformationExtraArgs:
    r"""Multiplies the steps of a direction by an estimate of the distance to the solution: Prodigy, for any direction.

    $$ d_{t+1} = \max\left(d_t, \frac{\sum_i w_i \langle g_i, x_0 - x_i \rangle}{\|\sum_i w_i g_i\|_*}\right), \quad
       w_i = \lambda^{t-i} d_i^2 c_i, $$

    with $c_i$ the factor times Adam's correction of bias, as in `optax.contrib.prodigy`, which this reproduces with
    `optax.scale_by_adam()` as direction. The direction is given the gradients times $d_i$, so that its averages
    remember recent gradients best while d grows; it must not depend on the scale of gradients.

    The estimate is made in float32 and is free of the scale of the loss. Parameters narrower than float32 may round
    the first, tiny steps away: for them the sum of steps stands for $x_0 - x_i$.

    Args:
      direction: a transformation whose results have about unit size.
      factor: multiplies the steps: a number, traced or not, or a schedule.
      norm: of a tree like the parameters, dual to the norm in which the direction is steepest.
      decay: of the sums.
      initial: the first estimate, smaller than the distance.
      b1: of the correction of bias, 0 for none.
      b2: of the correction of bias, 0 for none.

    Returns:
      A transformation whose `update` requires `params`. Its results are to be subtracted: follow it with
      `optax.scale(-1.0)`. A schedule may also follow it.

    Raises:
      TypeError: a parameter or gradient is not real floating-point.
      ValueError: `params` is missing.

    References:
      Mishchenko & Defazio, "Prodigy: an expeditiously adaptive parameter-free learner", arXiv:2306.06101, 2023.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> tx = optax.chain(scale_by_distance(optax.scale_by_adam()), optax.scale(-1.0))
      >>> params = jnp.array([3.0, -2.0])
      >>> state = tx.init(params)
      >>> for _ in range(200):
      ...     updates, state = tx.update(jax.grad(lambda x: jnp.sum(jnp.abs(x)))(params), state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> bool(1 < state[0].distance < 4)
      True
    """
    direction = optax.with_extra_args_support(direction)

    def init(params: optax.Params) -> ScaleByDistanceState:
        check_real(params, "parameter")
        return ScaleByDistanceState(
            count=replicated(jnp.zeros([], jnp.int32), params),
            distance=replicated(jnp.full([], initial, jnp.float32), params),
            numerator=replicated(jnp.zeros([], jnp.float32), params),
            grad_sum=jax.tree.map(lambda x: jnp.zeros_like(x, _wide(x)), params),
            # A copy: parameters may be donated to a step whose argument the state is too.
            origin=jax.tree.map(
                lambda x: jnp.zeros_like(x, jnp.float32) if _is_narrow(x) else jnp.array(x, copy=True), params
            ),
            direction=direction.init(params),
        )

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, ScaleByDistanceState]:
        if params is None:
            raise ValueError(
                "The distance is estimated from the parameters, but update was called without them. Call "
                "update(gradients, state, params)."
            )
        check_real(updates, "gradient")
        state = ScaleByDistanceState(*state)  # pyright: ignore[reportGeneralTypeIssues]
        grads = jax.tree.map(lambda g: jnp.asarray(g).astype(_wide(g)), updates)
        count = jnp.asarray(optax.safe_increment(state.count))
        rate = jnp.asarray(factor(state.count) if callable(factor) else factor, jnp.float32)
        correction = jnp.sqrt(1 - b2 ** count.astype(jnp.float32)) / (1 - b1 ** count.astype(jnp.float32))

        # Relative to the first estimate, since d^2 is tiny at first.
        growth = state.distance / initial
        weight = growth * growth * rate * correction
        travelled = jax.tree.map(lambda o, x, g: _travelled(o, x).astype(g.dtype), state.origin, params, grads)
        inner = _total(jnp.sum(g * x) for g, x in zip(*map(jax.tree.leaves, (grads, travelled)), strict=True))
        numerator = (decay * state.numerator + weight * inner).astype(jnp.float32)
        grad_sum = jax.tree.map(lambda s, g: decay * s + weight.astype(s.dtype) * g, state.grad_sum, grads)
        distance = _grown(state.distance, numerator, norm(grad_sum))

        weighted = jax.tree.map(lambda g: growth.astype(g.dtype) * g, grads)
        steps, inner_state = direction.update(weighted, state.direction, params, **extra)
        size = rate * state.distance
        steps = jax.tree.map(lambda s: size.astype(s.dtype) * s, steps)
        origin = jax.tree.map(
            lambda o, s, x: o + s.astype(o.dtype) if _is_narrow(x) else o, state.origin, steps, params
        )
        steps = jax.tree.map(lambda s, g: s.astype(jnp.result_type(g)), steps, updates)
        return steps, ScaleByDistanceState(count, distance, numerator, grad_sum, origin, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _total(parts: Iterable[Array]) -> Float[Array, ""]:
    return sum((x.astype(jnp.float32) for x in parts), start=jnp.zeros([], jnp.float32))


def _grown(distance: Array, numerator: Array, size: Array) -> Float[Array, ""]:
    """The larger of the old estimate and the new one, where that is one."""
    estimate = numerator / jnp.where(size > 0, size, 1)
    return jnp.where(jnp.isfinite(estimate), jnp.maximum(distance, estimate), distance).astype(jnp.float32)


def _travelled(origin: Array, param: Array) -> Array:
    """x_0 - x_i."""
    return origin if _is_narrow(param) else origin - param


def _wide(x: Array) -> jnp.dtype:
    return at_least_float32(jnp.result_type(x))


def _is_narrow(x: Array) -> bool:
    return jnp.finfo(jnp.result_type(x)).bits < 32
