"""Training of a predictor, with early stopping."""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float, PyTree

from optax_unf._flax import linen as nn

Inputs = PyTree[Float[ArrayLike, "models ..."]]
# Models that a predictor looks at together where it is not trained.
_CHUNK = 100


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """How a predictor is trained.

    Attributes:
      learning_rate: Adam's, at first.
      falling: whether it falls to zero along a cosine, over all epochs.
      batch_size: models a step.
      epochs: the most there are; the best by validation is kept.
      weight_decay: decoupled, as in AdamW.
    """

    learning_rate: float = 1e-3
    falling: bool = False
    batch_size: int = 10
    epochs: int = 10
    weight_decay: float = 0.0


@dataclasses.dataclass(frozen=True, eq=False)
class Fitted:
    """A trained predictor.

    Attributes:
      predict: predicted rates in [0, 1] for inputs.
      variables: of its module, for `predict`; nothing for trees.
      validation: the loss after each epoch.
      parameters: how many numbers were trained.
      seconds: how long that took, compilation excluded.
    """

    predict: Callable[[Inputs], Float[np.ndarray, " models"]]
    variables: PyTree
    validation: tuple[float, ...]
    parameters: int
    seconds: float


def fit(
    module: nn.Module,
    train: tuple[Inputs, Float[np.ndarray, " models"]],
    validation: tuple[PyTree[Float[ArrayLike, "others ..."]], Float[np.ndarray, " others"]],
    key: Array,
    config: FitConfig = FitConfig(),
) -> Fitted:
    """Trains a module by binary cross-entropy on rates.

    Args:
      module: from inputs to logits `[models, 1]`; its collection `normalization` is made by `init`.
      train: inputs, and rates in [0, 1].
      validation: the same, for early stopping.
      key: of the initial weights, the order of the models, and dropout.
      config: how.
    """
    key_init, key = jax.random.split(key)
    rates = jnp.asarray(train[1], jnp.float32)
    inputs = jax.tree.map(jnp.asarray, train[0])
    variables = jax.jit(module.init)(key_init, inputs if len(rates) < 1000 else _some(inputs, np.arange(1000)))
    constant = {name: x for name, x in variables.items() if name != "params"}
    steps = len(rates) // config.batch_size
    rate = config.learning_rate
    if config.falling:
        rate = optax.cosine_decay_schedule(rate, steps * config.epochs)
    optimizer = optax.adamw(rate, weight_decay=config.weight_decay)

    def loss(params: PyTree, rows: Array, key: Array) -> Float[Array, ""]:
        logits = module.apply({**constant, "params": params}, _some(inputs, rows), rngs={"dropout": key})
        return jnp.mean(optax.sigmoid_binary_cross_entropy(logits[:, 0], rates[rows]))  # type: ignore[index]

    def step(carry: Any, rows: Array, key: Array) -> Any:
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, rows, key), state, params)
        return optax.apply_updates(params, updates), state

    def validation_loss(params: PyTree) -> float:
        found = logits(module, {**constant, "params": params}, validation[0])
        return float(jnp.mean(optax.sigmoid_binary_cross_entropy(found, jnp.asarray(validation[1]))))

    carry = variables["params"], optimizer.init(variables["params"])
    program = jax.jit(step, donate_argnums=0).lower(carry, jnp.arange(config.batch_size), key).compile()
    validation_loss(carry[0])
    best, curve, start = jax.device_get(carry[0]), [], time.perf_counter()
    for epoch in range(config.epochs):
        epoch_key = jax.random.fold_in(key, epoch)
        order = jax.random.permutation(epoch_key, len(rates))[: steps * config.batch_size].reshape(steps, -1)
        for rows, step_key in zip(order, jax.random.split(epoch_key, steps), strict=True):
            carry = program(carry, rows, step_key)
        curve.append(validation_loss(carry[0]))
        if curve[-1] == min(curve):
            best = jax.device_get(carry[0])
    seconds = time.perf_counter() - start
    trained = {**constant, "params": best}
    return Fitted(
        predict=lambda given: predict(module, trained, given),
        variables=trained,
        validation=tuple(curve),
        parameters=sum(x.size for x in jax.tree.leaves(best)),
        seconds=seconds,
    )


def predict(module: nn.Module, variables: PyTree, inputs: Inputs) -> Float[np.ndarray, " models"]:
    """Rates in [0, 1] that a module predicts."""
    return np.asarray(jax.nn.sigmoid(logits(module, variables, inputs)))


def logits(module: nn.Module, variables: PyTree, inputs: Inputs) -> Float[np.ndarray, " models"]:
    """The outputs of a module for any number of models."""
    count = len(jax.tree.leaves(inputs)[0])
    # Always as many at a time, so that it is compiled once.
    chosen = [np.minimum(np.arange(first, first + _CHUNK), count - 1) for first in range(0, count, _CHUNK)]
    return np.concatenate([np.asarray(_apply(module, variables, _some(inputs, rows))) for rows in chosen])[:count]


@functools.partial(jax.jit, static_argnums=0)
def _apply(module: nn.Module, variables: PyTree, inputs: Inputs) -> Float[Array, " models"]:
    return module.apply(variables, inputs)[:, 0]  # type: ignore[index]


def _some(inputs: Inputs, rows: Any) -> PyTree:
    return jax.tree.map(lambda x: x[rows], inputs)
