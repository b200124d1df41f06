"""The direction of Eq. 31 as an optax transformation."""

import functools
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, Int, PyTree

from optax_unf._arguments import (
    check_accumulator,
    check_real,
    check_tile_entries,
    check_total_steps,
    checked_state,
    flatten_checked,
    given_params,
)
from optax_unf._dtypes import at_least_float32
from optax_unf._sharding import replicated
from optax_unf.infer import Spec, resolved_for_part
from optax_unf.nominal.orthogonal import scale_by_orthogonal
from optax_unf.nominal.soap import scale_by_soap
from optax_unf.optimizer.architecture import Architecture
from optax_unf.optimizer.features import DECAYS
from optax_unf.optimizer.meta_weights import MetaWeights, check_fits
from optax_unf.optimizer.mixture import scale_by_mixture
from optax_unf.optimizer.update import Given, Moments, direction_of, network_for, next_count
from optax_unf.optimizer.weight_files import load_weights
from optax_unf.spec.paths import leaves_by_path, show_path
from optax_unf.spec.permutation_spec import PermutationSpec

Weights: TypeAlias = MetaWeights | str | Path


class ScaleByUNFState(NamedTuple):
    """State of `scale_by_unf`.

    Attributes:
      count: number of updates so far, int32 [].
      mu: trees like the parameters, of the accumulator dtype: the momentum at gamma_0, unless the nominal term holds
        its own, then, unless f = 0, those at 0.1, 0.5, 0.9, 0.99, 0.999 and 0.9999. Behind a preconditioner
        they are of gradients that `nu` has scaled.
      nu: a tree like the parameters, at least float32: the mean square of each gradient over time, if the weights have
        a preconditioner; else None.
      nominal: the state of a nominal term of its own, `ScaleByOrthogonalState` or `ScaleBySoapState`; else None.
    """

    count: Int[Array, ""]  # pyright: ignore[reportIncompatibleMethodOverride] (optax names it so)
    mu: tuple[PyTree, ...]
    nu: PyTree = None
    nominal: Any = None


def scale_by_unf(
    weights: Weights,
    *,
    total_steps: int | None = None,
    spec: Spec = None,
    accumulator_dtype: DTypeLike | None = None,
    tile_entries: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Replaces gradients by the direction of a learned optimizer.

    The direction is that of Eq. 31 of Zhou, Finn & Harrison 2024,

    $$ m_t^{\gamma_0} + \beta f(W_t, \nabla_t, \{m_t^{\gamma_i}\}_i, t), \quad
       m_t^{\gamma} = \gamma m_{t-1}^{\gamma} + (1 - \gamma) \nabla_t, $$

    without the step size alpha and its sign: see `unf`. The first term is the nominal one; weights may have
    `scale_by_orthogonal` or `scale_by_soap` in its place (`Architecture.nominal`). Weights with a warm-up
    (`Architecture.step_warmup`)
    multiply it by 1 - exp(-t / tau), t being the number of the update. It is a pure function of the weights, so that
    `jax.vmap` and `jax.grad` over them work. Features are computed in float32, or in float64 where a parameter is.
    Outside of `jax.jit` too, the sum is one compiled program.

    Of a mixture the state is a `ScaleByMixtureState`, and arrays are at least float32.

    A gradient that is not finite makes the update not finite, and enters the momenta: wrap the optimizer in
    `optax.apply_if_finite`, which then drops the step and keeps the old state.

    Args:
      weights: a name of `optax_unf.list_pretrained()`, a path, or meta-weights.
      total_steps: updates in the whole run, which only a mixture of directions (`Architecture.head`) looks at.
      spec: a `PermutationSpec`, the nested tuples of names that `make_spec` takes, or a function of the parameters that
        returns either, such as `Inferred(loss, *args)`, which infers it from a loss. By default the weights' own
        where they belong to one weight space, else a name of its own for every axis. A spec of a whole model also
        serves for a part of it, such as `optax.masked` and `optax.partition` pass on, and for the halves of complex
        leaves, under `optax.contrib.split_real_and_imaginary`.
      accumulator_dtype: of the momenta. By default that of the parameter, but at least float32: an average at decay
        0.9999 does not move in bfloat16. Mean squares stay at least float32. Give it as a string, `"bfloat16"`, where
        `optax.inject_hyperparams` would take a type for a schedule.
      tile_entries: large leaves are evaluated in tiles of about so many entries, whose hidden features are all that
        is held of them; 0 evaluates every leaf whole. By default it depends on the device (`optimizer.network`),
        and 0 where there are several devices. A static argument for `optax.inject_hyperparams`.

    Returns:
      A transformation whose `update` requires `params`. Its `init` refuses parameters that do not fit.

    Raises:
      ValueError: `params` is missing; the trees or the spec do not match; the state is that of weights with another
        preconditioner; full-coefficient weights are used for another weight space than theirs, or for a part of it.
      TypeError: a parameter or gradient is not real floating-point, or `accumulator_dtype` is not; `tile_entries` is
        not a natural number; the state is that of another transformation.

    Example:
      >>> import jax.numpy as jnp, optax, optax_unf
      >>> tx = optax.chain(optax_unf.scale_by_unf("mlp-fashion-mnist-deepsets"), optax.scale(-0.1))
      >>> params = {"w": jnp.ones((3, 2))}
      >>> state = tx.init(params)
      >>> updates, state = tx.update({"w": jnp.ones((3, 2))}, state, params)
      >>> updates["w"].shape
      (3, 2)
    """
    if not isinstance(weights, MetaWeights):
        weights = load_weights(weights)

    check_accumulator(accumulator_dtype)
    check_tile_entries(tile_entries)
    check_total_steps(total_steps)
    if weights.architecture.head == "mixture":
        beta = weights.theta.scalars.beta
        return scale_by_mixture(
            weights.theta.network,
            total_steps,
            spec=spec,
            momentum=weights.gamma_0,
            beta=1.0 if beta is None else beta,
        )

    zero = functools.partial(_zero_momentum, dtype=accumulator_dtype)
    # In a narrower type squares would overflow, and their average at decay 0.999 stand still.
    squares_dtype = None if accumulator_dtype is None else at_least_float32(accumulator_dtype)
    zero_nu = functools.partial(_zero_momentum, dtype=squares_dtype)
    make = {"momentum": None, "orthogonalized": scale_by_orthogonal, "soap": scale_by_soap}[
        weights.architecture.nominal
    ]
    nominal = None if make is None else make(spec, momentum=weights.gamma_0)

    def init(params: optax.Params) -> ScaleByUNFState:
        check_real(params, "parameter")
        # optax.tree.map_params passes a placeholder, without leaves, which no spec fits.
        if jax.tree.leaves(params):
            _weight_space(weights, spec, params)
        return ScaleByUNFState(
            count=replicated(jnp.zeros([], jnp.int32), params),
            mu=tuple(jax.tree.map(zero, params) for _ in range(_number_of_momenta(weights.architecture))),
            nu=jax.tree.map(zero_nu, params) if weights.architecture.preconditioner else None,
            nominal=None if nominal is None else nominal.init(params),
        )

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, ScaleByUNFState]:
        del extra  # every optax transformation accepts what others in its chain need
        state = _checked_state(state, weights.architecture)
        params = given_params(params)
        check_real(params, "parameter")
        check_real(updates, "gradient")
        space = _weight_space(weights, spec, params)
        if not space.leaves:
            return updates, state._replace(count=next_count(state.count))

        steps, nominal_state = (None, None) if nominal is None else nominal.update(updates, state.nominal, params)
        leaves = functools.partial(_leaves, space)
        direction, moments = direction_of(
            network_for(weights.architecture, space, tile_entries),
            weights.theta,
            leaves(params, "parameters"),
            Moments(
                state.count,
                tuple(leaves(tree, "momenta") for tree in state.mu),
                None if state.nu is None else leaves(state.nu, "mean squares"),
            ),
            leaves(updates, "gradients"),
            None if steps is None else leaves(steps, "gradients"),
        )
        return space.unflatten(direction, like=updates), ScaleByUNFState(
            moments.count,
            tuple(space.unflatten(m, like=tree) for m, tree in zip(moments.mu, state.mu, strict=True)),
            None if moments.nu is None else space.unflatten(moments.nu, like=state.nu),
            nominal_state,
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _weight_space(weights: MetaWeights, spec: Spec, params: PyTree) -> PermutationSpec:
    if spec is None and weights.spec is not None:
        # Names do not matter for the comparison of leaves, so the weights' own axes may stand for the parameters'.
        shapes = {path: jnp.shape(x) for path, x in leaves_by_path(params).items()}
        if shapes == {leaf.path: leaf.shape for leaf in weights.spec.leaves}:
            return weights.spec
    space = resolved_for_part(spec, params)
    if not space.leaves:
        if paths := leaves_by_path(params):
            raise ValueError(
                f"The permutation spec must have the parameters, but has none of {', '.join(map(show_path, paths))}. "
                f"It is the spec of other parameters, or these have been joined into one vector, as optax.flatten does."
            )
        return space
    check_fits(weights.spec, space)
    flatten_checked(space, params, "parameters")
    return space


def _checked_state(state: optax.OptState, architecture: Architecture) -> ScaleByUNFState:
    state = checked_state(state, ScaleByUNFState)
    wanted = _number_of_momenta(architecture)
    if len(state.mu) != wanted:
        raise ValueError(
            f"The state must hold {wanted} trees of momenta, but holds {len(state.mu)}. Call init with these weights."
        )
    if (state.nu is not None) != (architecture.preconditioner is not None):
        raise ValueError(
            f"The state {'lacks' if state.nu is None else 'has'} mean squares of the gradients, and is not "
            f"that of weights with preconditioner={architecture.preconditioner!r}. Call init with these weights."
        )
    if (state.nominal is not None) != (architecture.nominal != "momentum"):
        raise ValueError(
            f"The state {'lacks' if state.nominal is None else 'has'} a state of the nominal term, and is not that of "
            f"weights with nominal={architecture.nominal!r}. Call init with these weights."
        )
    return state


def _leaves(space: PermutationSpec, tree: PyTree, what: str) -> Given:
    return tuple(flatten_checked(space, tree, what))


def _number_of_momenta(architecture: Architecture) -> int:
    return (architecture.nominal == "momentum") + (len(DECAYS) if architecture.head != "none" else 0)


def _zero_momentum(x: Array, dtype: DTypeLike | None) -> Array:
    # zeros_like keeps the sharding.
    return jnp.zeros_like(x, dtype or at_least_float32(jnp.result_type(x)))
