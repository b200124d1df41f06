"""One step of Eq. 31 on the leaves of a weight space, as a program that is compiled once."""

import functools
from collections.abc import Callable, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from optax_unf._dtypes import at_least_float32
from optax_unf._sharding import placements, propagated
from optax_unf.optimizer.evaluate import Tiling, apply, tiling_for
from optax_unf.optimizer.features import DECAYS, encode_step, noise_squares, scale_by_time
from optax_unf.optimizer.meta_weights import MetaWeights
from optax_unf.optimizer.network import OptimizerConfig
from optax_unf.spec.permutation_spec import PermutationSpec

Leaves: TypeAlias = Sequence[Float[Array, "..."]]
"""An array for each leaf, in the order of the spec."""
Moved: TypeAlias = tuple[Leaves, Sequence[Leaves], Leaves | None, Int[Array, ""]]
"""The direction, and the new momenta, mean squares and count."""

# As many programs are kept, for the weight spaces and architectures that were stepped in last.
_KEPT = 128


def step(
    params: Leaves,
    momenta: Sequence[Leaves],
    squares: Leaves | None,
    count: Int[Array, ""],
    *,
    grads: Leaves,
    nominal: Leaves | None,
    weights: MetaWeights,
    space: PermutationSpec,
    block_entries: int | None,
) -> Moved:
    """The direction, and the new state.

    `nominal` is the nominal term where it is not the first of the momenta.

    They have the types and shardings of the parameters and of the old state. Called outside of `jax.jit`, this is one
    compiled program; inside, its operations become part of the program around it.
    """
    moving = (tuple(params), tuple(map(tuple, momenta)), None if squares is None else tuple(squares), count)
    tiling = _default_tiling() if block_entries is None else Tiling(int(block_entries))
    program = _program(weights.config, space, tiling, placements(moving))
    nominal = None if nominal is None else tuple(nominal)
    return program(*moving, grads=tuple(grads), nominal=nominal, theta=weights.theta)


@functools.lru_cache(_KEPT)
def _program(
    config: OptimizerConfig, space: PermutationSpec, tiling: Tiling, shardings: PyTree
) -> Callable[..., Moved]:
    function = functools.partial(_step, config=config, space=space, tiling=tiling)
    return jax.jit(propagated(function), out_shardings=shardings, inline=True)


def _default_tiling() -> Tiling:
    devices = jax.devices()
    return tiling_for(devices[0].platform, len(devices))


def next_count(count: Int[Array, ""]) -> Int[Array, ""]:
    """The number of steps after one more."""
    return jnp.asarray(optax.safe_increment(count))


def _step(
    params: Leaves,
    momenta: Sequence[Leaves],
    squares: Leaves | None,
    count: Int[Array, ""],
    *,
    grads: Leaves,
    nominal: Leaves | None,
    theta: PyTree,
    config: OptimizerConfig,
    space: PermutationSpec,
    tiling: Tiling,
) -> Moved:
    # Without jit, leaves may be numpy arrays and plain numbers.
    params, grads = tuple(map(jnp.asarray, params)), tuple(map(jnp.asarray, grads))
    weights = MetaWeights(theta, config, None)
    dtype = at_least_float32(*(x.dtype for x in params))
    seen = DECAYS if config.head != "none" else ()
    decays = [jnp.asarray(d, dtype) for d in (*([weights.gamma_0] if nominal is None else []), *seen)]
    if squares is not None:
        pairs = [scale_by_time(g.astype(dtype), v.astype(dtype), count) for g, v in zip(grads, squares, strict=True)]
        grads, squares = [g for g, _ in pairs], _cast([v for _, v in pairs], squares)
    known = noise_squares(count, dtype) if config.scales_entries else None
    # Leaves stay apart: side by side in one array, they would lose their shardings.
    new = [
        _cast([_advance(m.astype(dtype), grad.astype(dtype), d) for d, m in zip(decays, old, strict=True)], old)
        for grad, *old in zip(grads, *momenta, strict=True)
    ]
    direction = [x.astype(dtype) for x in ([after[0] for after in new] if nominal is None else nominal)]
    if config.head != "none":
        channels = [
            [param, grad, *after[-len(DECAYS) :]] for param, grad, after in zip(params, grads, new, strict=True)
        ]
        learned = apply(config, space, theta["network"], channels, known, encode_step(count), tiling, dtype)
        beta = theta["beta"].astype(dtype)
        direction = [m + beta * f for m, f in zip(direction, learned, strict=True)]
    if config.step_warmup:
        factor = weights.warmup(count).astype(dtype)
        direction = [factor * d for d in direction]
    return _cast(direction, params), tuple(zip(*new, strict=True)), squares, next_count(count)


def _advance(m: Float[Array, "*shape"], g: Float[Array, "*shape"], decay: Float[Array, ""]) -> Float[Array, "*shape"]:
    """A momentum with one more gradient."""
    return m + (1.0 - decay) * (g - m)


def _cast(leaves: Leaves, like: Leaves) -> tuple[Array, ...]:
    return tuple(x.astype(y.dtype) for x, y in zip(leaves, like, strict=True))
