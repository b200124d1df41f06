"""The Tiny RNN Zoo: rate of training many models beside that of one, and time of an epoch of predictors.

Run, for one core: XLA_FLAGS=--xla_cpu_multi_thread_eigen=false taskset -c 0 python benchmarks/zoo.py

Processor seconds, so that other work on the machine matters little. Operations are those of the matrix products,
forward and backward: three times the forward ones.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_unf.nn import InvariantPredictor
from optax_unf.zoo.arithmetic import CHARACTERS
from optax_unf.zoo.config import ZooConfig
from optax_unf.zoo.predictors import model_spec
from optax_unf.zoo.training import Trainer, draw_settings

LANES, BATCH, STEPS, REPEATS = 16, 128, 100, 5
EPOCH, PREDICTOR_BATCH = 4000, 10


def least_seconds(call: Callable[[], Any]) -> float:
    """The least processor time of several calls, the first left out."""
    jax.block_until_ready(call())
    times = []
    for _ in range(REPEATS):
        start = time.process_time()
        jax.block_until_ready(call())
        times.append(time.process_time() - start)
    return min(times)


def training_rate(hidden: int, models: int, batch: int) -> float:
    """Operations a second of training so many models side by side."""
    config = ZooConfig(hidden=hidden)
    trainer = Trainer(config)
    settings = draw_settings(config, jnp.arange(models))
    train = jax.jit(trainer.train, static_argnums=1)
    seconds = [least_seconds(lambda steps=steps: train(settings, batch, steps)) for steps in (0, STEPS)]
    questions = trainer.questions[0]
    length, places = questions.asked.shape[1], questions.answers.shape[1]
    products = 3 * hidden * (hidden + len(CHARACTERS)) * (length + places) + places * hidden * len(CHARACTERS)
    return 3 * 2 * products * models * batch * STEPS / (seconds[1] - seconds[0])


def epoch_seconds(layer: str, characters: str) -> float:
    """Processor seconds of an epoch of a predictor."""
    config = ZooConfig()
    model = Trainer(config).model
    stacked = jax.vmap(model.init)(jax.random.split(jax.random.key(0), PREDICTOR_BATCH), jnp.ones(PREDICTOR_BATCH))
    predictor = InvariantPredictor(model_spec(model, characters=characters), layer=layer)  # type: ignore[arg-type]
    variables = jax.jit(predictor.init)(jax.random.key(0), stacked)
    optimizer = optax.adam(1e-3)

    def loss(params: Any) -> jax.Array:
        found = predictor.apply({**variables, "params": params}, stacked)
        return jnp.mean(optax.sigmoid_binary_cross_entropy(found, jnp.full((PREDICTOR_BATCH, 1), 0.5)))  # type: ignore[arg-type]

    def step(carry: Any) -> Any:
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    program = jax.jit(step, donate_argnums=0)
    carry = [(variables["params"], optimizer.init(variables["params"]))]
    return least_seconds(lambda: carry.append(program(carry.pop())) or carry[0]) * EPOCH / PREDICTOR_BATCH


def main() -> None:
    """Prints a line per measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, nargs="*", default=[16, 24, 32])
    parser.add_argument("--layer", nargs="*", default=["unf", "unf-tied", "deepsets"])
    arguments = parser.parse_args()
    for hidden in arguments.hidden:
        many = training_rate(hidden, LANES, BATCH)
        one = training_rate(hidden, 1, LANES * BATCH)
        rates = f"{many / 1e9:.1f} GFLOP/s for {LANES} models, {one / 1e9:.1f} for one"
        print(f"hidden {hidden}: {rates}: {many / one:.0%}")
    for layer in arguments.layer:
        for characters in ("permuted", "fixed") if layer == "unf" else ("permuted",):
            print(f"{layer}, characters {characters}: {epoch_seconds(layer, characters):.0f} s an epoch of {EPOCH:,}")


if __name__ == "__main__":
    main()
