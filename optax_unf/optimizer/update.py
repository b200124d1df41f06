"""Eq. 31 on the leaves of a weight space, as a program that is compiled once."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from optax_unf._dtypes import at_least_float32
from optax_unf._sharding import placements, propagated
from optax_unf.optimizer.architecture import Architecture
from optax_unf.optimizer.features import DECAYS, encode_step, noise_squares, preconditioned
from optax_unf.optimizer.network import Network, Tiling, tiling_for
from optax_unf.optimizer.theta import Theta
from optax_unf.spec.permutation_spec import PermutationSpec

Leaves: TypeAlias = tuple[Float[Array, "..."], ...]
"""An array for each leaf, in the order of the spec."""
Given: TypeAlias = tuple[Float[ArrayLike, "..."], ...]
"""The same as callers have them: without jit, leaves may be numpy arrays and plain numbers."""

# As many programs are kept, for the weight spaces and architectures that were updated last.
_KEPT = 128


class Moments(NamedTuple):
    """What an update remembers of the gradients before it.

    Attributes:
      count: number of updates so far.
      mu: momenta: that of the nominal term, unless it holds its own, then those that f sees.
      nu: mean squares, where gradients are divided by their roots.
    """

    count: Int[Array, ""]  # pyright: ignore[reportIncompatibleMethodOverride] (optax names it so)
    mu: tuple[Given, ...]
    nu: Given | None


def network_for(architecture: Architecture, spec: PermutationSpec, tile_entries: int | None) -> Network:
    """F in tiles of so many entries, or of those that are best on the devices there are."""
    if tile_entries is not None:
        return Network(architecture, spec, Tiling(int(tile_entries)))
    devices = jax.devices()
    return Network(architecture, spec, tiling_for(devices[0].platform, len(devices)))


def direction_of(
    network: Network, theta: Theta, params: Given, moments: Moments, grads: Given, nominal: Given | None
) -> tuple[Leaves, Moments]:
    """The direction of Eq. 31, and the new moments, in the dtypes and shardings of parameters and old moments.

    Called outside of `jax.jit`, this is one compiled program; inside, its operations become part of the program around
    it.

    Args:
      network: f, with the architecture of the whole optimizer; not evaluated where f = 0.
      theta: its numbers.
      params: the parameters W.
      moments: the old ones.
      grads: their gradients.
      nominal: the nominal term where it is not momentum at gamma_0.
    """
    program = _program(network, placements((params, moments)))
    return program(params, moments, theta=theta, grads=grads, nominal=nominal)


@functools.lru_cache(_KEPT)
def _program(network: Network, shardings: PyTree) -> Callable[..., tuple[Leaves, Moments]]:
    update = functools.partial(_update, network=network)
    return jax.jit(propagated(update), out_shardings=shardings, inline=True)


def _update(
    params: Given, moments: Moments, *, network: Network, theta: Theta, grads: Given, nominal: Given | None
) -> tuple[Leaves, Moments]:
    scalars, (count, mu, nu) = theta.scalars, moments
    dtype = at_least_float32(*map(jnp.result_type, params))
    g = _wide(grads, dtype)
    if nu is not None:
        g, nu = _preconditioned(g, nu, count)

    # m^gamma = gamma m^gamma + (1 - gamma) g
    gammas = ([scalars.gamma_0] if nominal is None else []) + list(DECAYS if theta.network else ())
    mu = tuple(_momentum(jnp.asarray(gamma, dtype), m, g) for gamma, m in zip(gammas, mu, strict=True))
    direction = _wide(mu[0] if nominal is None else nominal, dtype)

    # m^gamma_0 + beta f(W, g, {m^gamma_i}, t)
    if scalars.beta is not None:
        known = noise_squares(count, dtype) if network.architecture.preconditioner else None
        features = list(zip(params, g, *mu[-len(DECAYS) :], strict=True))
        f = network(theta.network, features, known, encode_step(count), dtype)
        beta = scalars.beta.astype(dtype)
        direction = tuple(m + beta * y for m, y in zip(direction, f, strict=True))

    if scalars.log_step_warmup is not None:
        direction = tuple(scalars.warmup(count).astype(dtype) * d for d in direction)
    return _like(direction, params), Moments(next_count(count), mu, nu)


def next_count(count: Int[Array, ""]) -> Int[Array, ""]:
    """The number of updates after one more."""
    return jnp.asarray(optax.safe_increment(count))


def _momentum(gamma: Float[Array, ""], old: Given, g: Leaves) -> Leaves:
    """A momentum with one more gradient."""
    pairs = zip(_wide(old, gamma.dtype), g, strict=True)
    return _like([m + (1.0 - gamma) * (g - m) for m, g in pairs], old)


def _preconditioned(g: Leaves, nu: Given, count: Int[Array, ""]) -> tuple[Leaves, Leaves]:
    """Gradients over their root mean squares, and the new mean squares."""
    pairs = [preconditioned(x, jnp.asarray(v).astype(x.dtype), count) for x, v in zip(g, nu, strict=True)]
    scaled, new = zip(*pairs, strict=True)
    return scaled, _like(new, nu)


def _wide(leaves: Given, dtype: jnp.dtype) -> Leaves:
    return tuple(jnp.asarray(x).astype(dtype) for x in leaves)


def _like(leaves: Sequence[Array], others: Given) -> Leaves:
    """The leaves in the dtypes of others. They stay apart: side by side in one array, they would lose shardings."""
    return tuple(x.astype(jnp.result_type(y)) for x, y in zip(leaves, others, strict=True))
