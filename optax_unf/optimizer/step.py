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
from optax_unf.optimizer.evaluate import default_block_entries, evaluate
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
    if block_entries is None:
        block_entries = default_block_entries()
    program = _program(weights.config, space, int(block_entries), placements(moving))
    nominal = None if nominal is None else tuple(nominal)
    return program(*moving, grads=tuple(grads), nominal=nominal, theta=weights.theta)


@functools.lru_cache(_KEPT)
def _program(
    config: OptimizerConfig, space: PermutationSpec, block_entries: int, shardings: PyTree
) -> Callable[..., Moved]:
    function = functools.partial(_step, config=config, space=space, block_entries=block_entries)
    return jax.jit(propagated(function), out_shardings=shardings, inline=True)


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
    block_entries: int,
) -> Moved:
    # Without jit, leaves may be numpy arrays and plain numbers.
    params, grads = tuple(map(jnp.asarray, params)), tuple(map(jnp.asarray, grads))
    weights = MetaWeights(theta, config, None)
    dtype = at_least_float32(*(x.dtype for x in params))
    # Behind the barrier, no decay is a constant to the compiler: it would turn 0.5 m + 0.5 g into 0.5 (m + g), compute
    # that twice, and keep a copy of m for it. Each decay has an array of its own, not a place in a common one, so that
    # all momenta of a shape have the same code, which is compiled once.
    seen = DECAYS if config.head != "none" else ()
    decays = [jnp.asarray(d, dtype) for d in (*([weights.gamma_0] if nominal is None else []), *seen)]
    shares = [tuple(x) for x in jax.lax.optimization_barrier([jnp.stack([d, 1.0 - d]) for d in decays])]
    if squares is not None:
        pairs = [scale_by_time(g.astype(dtype), v.astype(dtype), count) for g, v in zip(grads, squares, strict=True)]
        grads, squares = [g for g, _ in pairs], _cast([v for _, v in pairs], squares)
    known = noise_squares(count, dtype) if config.scales_entries else None
    # Leaves stay apart: side by side in one array, they would lose their shardings.
    new = [
        _cast([d * m.astype(dtype) + rest * grad.astype(dtype) for (d, rest), m in zip(shares, old, strict=True)], old)
        for grad, *old in zip(grads, *momenta, strict=True)
    ]
    direction = [x.astype(dtype) for x in ([after[0] for after in new] if nominal is None else nominal)]
    if config.head != "none":
        channels = [
            [param, grad, *after[-len(DECAYS) :]] for param, grad, after in zip(params, grads, new, strict=True)
        ]
        learned = evaluate(config, space, theta["network"], channels, known, encode_step(count), block_entries, dtype)
        beta = theta["beta"].astype(dtype)
        direction = [m + beta * f for m, f in zip(direction, learned, strict=True)]
    if config.step_warmup:
        factor = weights.warmup(count).astype(dtype)
        direction = [factor * d for d in direction]
    return _cast(direction, params), tuple(zip(*new, strict=True)), squares, next_count(count)


def _cast(leaves: Leaves, like: Leaves) -> tuple[Array, ...]:
    return tuple(x.astype(y.dtype) for x, y in zip(leaves, like, strict=True))
