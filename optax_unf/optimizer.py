"""Eq. 31 as optax transformations."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from optax_unf.features import DECAYS, encode_step, normalize, pack, unpack
from optax_unf.network import UpdateNetwork
from optax_unf.spec import PermutationSpec, make_spec
from optax_unf.weights import MetaWeights


class ScaleByUNFState(NamedTuple):
    """State of `scale_by_unf`.

    Attributes:
      count: number of updates so far, int32 [].
      momenta: seven trees like the parameters, at least float32: the momentum at gamma_0, then those at
        0.1, 0.5, 0.9, 0.99, 0.999 and 0.9999.
    """

    count: Int[Array, ""]
    momenta: tuple[PyTree, ...]


def scale_by_unf(
    weights: MetaWeights, *, spec: PermutationSpec | None = None
) -> optax.GradientTransformationExtraArgs:
    def init(params: PyTree) -> ScaleByUNFState:
        return ScaleByUNFState(
            count=jnp.zeros([], jnp.int32),
            momenta=tuple(jax.tree.map(_zeros_accumulator, params) for _ in range(1 + len(DECAYS))),
        )

    def update(
        updates: PyTree, state: ScaleByUNFState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, ScaleByUNFState]:
        del extra
        space = spec or weights.spec or make_spec(None, params)
        grads = space.flatten(updates, "gradients")
        shapes = [leaf.shape for leaf in space.leaves]
        gradient, weight = _flat(grads), _flat(space.flatten(params, "parameters"))
        old = jnp.stack([_flat(space.flatten(m, "momenta")) for m in state.momenta])
        decays = jnp.append(weights.gamma_0, jnp.array(DECAYS, jnp.float32))[:, None]
        momenta = decays * old + (1.0 - decays) * gradient
        direction = momenta[0]
        if weights.config.head != "none":
            inputs = jnp.concatenate([weight[None], gradient[None], momenta[1:]])
            features = [
                normalize(x.reshape(x.shape[0], -1)).reshape(x.shape) for x in unpack(inputs, shapes)
            ]
            network = UpdateNetwork(weights.config, space)
            learned = network.apply({"params": weights.theta["network"]}, features, encode_step(state.count))
            direction += weights.theta["beta"] * _flat(learned)
        out = [x[0].astype(g.dtype) for x, g in zip(unpack(direction[None], shapes), grads, strict=True)]
        new = [
            space.unflatten([x[0] for x in unpack(m[None], shapes)], like=tree)
            for m, tree in zip(momenta, state.momenta, strict=True)
        ]
        return space.unflatten(out, like=updates), ScaleByUNFState(
            optax.safe_increment(state.count), tuple(new)
        )

    return optax.GradientTransformationExtraArgs(init, update)


def unf(
    weights: MetaWeights,
    *,
    spec: PermutationSpec | None = None,
    learning_rate: optax.ScalarOrSchedule | None = None,
) -> optax.GradientTransformationExtraArgs:
    rate = weights.alpha if learning_rate is None else learning_rate
    return optax.chain(scale_by_unf(weights, spec=spec), optax.scale_by_learning_rate(rate))


def _flat(leaves: list[Array]) -> Float[Array, " entries"]:
    return jnp.concatenate([x.reshape(-1).astype(jnp.float32) for x in leaves])


def _zeros_accumulator(x: Array) -> Array:
    return jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32))
