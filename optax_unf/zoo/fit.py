"""Training of a predictor, with early stopping."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

Inputs = PyTree[Float[Array, "models ..."]]
# Models that a predictor looks at together where it is not trained.
_CHUNK = 100


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """How a predictor is trained.

    Attributes:
      learning_rate: Adam's.
      batch_size: models a step.
      epochs: the most there are; the best by validation is kept.
      weight_decay: decoupled, as in AdamW.
    """

    learning_rate: float = 1e-3
    batch_size: int = 10
    epochs: int = 10
    weight_decay: float = 0.0


@dataclasses.dataclass(frozen=True, eq=False)
class Fitted:
    """A trained predictor.

    Attributes:
      predict: predicted rates in [0, 1] for inputs.
      variables: of its module.
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
    validation: tuple[Inputs, Float[np.ndarray, " models"]],
    key: Array,
    config: FitConfig = FitConfig(),  # noqa: B008 (frozen)
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
    optimizer = optax.adamw(config.learning_rate, weight_decay=config.weight_decay)

    def loss(params: PyTree, rows: Array, key: Array) -> Float[Array, ""]:
        logits = module.apply({**constant, "params": params}, _some(inputs, rows), rngs={"dropout": key})
        return jnp.mean(optax.sigmoid_binary_cross_entropy(logits[:, 0], rates[rows]))  # type: ignore[index]

    def step(carry: Any, rows: Array, key: Array) -> Any:
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, rows, key), state, params)
        return optax.apply_updates(params, updates), state

    @jax.jit
    def logits_of(params: PyTree, some: Inputs) -> Float[Array, " models"]:
        return module.apply({**constant, "params": params}, some)[:, 0]  # type: ignore[index]

    def all_logits(params: PyTree, given: Inputs) -> Float[np.ndarray, " models"]:
        count = len(jax.tree.leaves(given)[0])
        # Always as many models, so that it is compiled once.
        chosen = [np.minimum(np.arange(first, first + _CHUNK), count - 1) for first in range(0, count, _CHUNK)]
        return np.concatenate([np.asarray(logits_of(params, _some(given, rows))) for rows in chosen])[:count]

    def validation_loss(params: PyTree) -> float:
        losses = optax.sigmoid_binary_cross_entropy(all_logits(params, validation[0]), jnp.asarray(validation[1]))
        return float(jnp.mean(losses))

    carry = variables["params"], optimizer.init(variables["params"])
    steps = len(rates) // config.batch_size
    program = jax.jit(step, donate_argnums=0).lower(carry, jnp.arange(config.batch_size), key).compile()
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
    return Fitted(
        predict=lambda given: np.asarray(jax.nn.sigmoid(all_logits(best, given))),
        variables={**constant, "params": best},
        validation=tuple(curve),
        parameters=sum(x.size for x in jax.tree.leaves(best)),
        seconds=seconds,
    )


def _some(inputs: Inputs, rows: Any) -> Inputs:
    return jax.tree.map(lambda x: x[rows], inputs)
