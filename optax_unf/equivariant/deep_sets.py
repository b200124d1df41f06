"""Deep Sets: each leaf is a set of entries."""

import math
from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float

from optax_unf._xla import product


def deep_sets(params: Mapping[str, Float[Array, "..."]], x: Float[Array, "i *shape"]) -> Float[Array, "o *shape"]:
    """The layer on one leaf, channels first, with the parameters that are given: `kernel`, `pooled`, `bias`."""
    y = product(params["kernel"], x)
    if "pooled" in params:
        y += product(params["pooled"], _mean(x))
    if "bias" in params:
        y += params["bias"].reshape(-1, *(1 for _ in x.shape[1:])).astype(y.dtype)
    return y


def with_shared(
    params: Mapping[str, Float[Array, "..."]], shared: Float[Array, " shared"]
) -> dict[str, Float[Array, "..."]]:
    """Parameters without the last input channels, which are `shared` at every entry: their product is a bias."""
    kernel, rest = jnp.split(params["kernel"], [len(params["kernel"]) - len(shared)])
    offset = shared @ rest
    return {**params, "kernel": kernel, "bias": offset + params["bias"] if "bias" in params else offset}


def _mean(x: Float[Array, "i *shape"]) -> Array:
    axes = tuple(range(1, x.ndim))
    # A mean over nothing is 0: an empty leaf stays empty and finite.
    return jnp.sum(x, axes, keepdims=True) / max(math.prod(x.shape[1:]), 1)
