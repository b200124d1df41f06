"""Inner steps per second of meta-training on mlp-fashion-mnist.

    python benchmarks/meta_training.py --data-dir DIR

One inner step is one training step of one particle. Prints `name value unit` per line; compilation apart.
"""

import argparse
import functools
import os
import time

import jax
import numpy as np

jax.config.update("jax_num_cpu_devices", os.cpu_count())

import jax.numpy as jnp  # noqa: E402
import optax  # noqa: E402

from optax_unf import OptimizerConfig, init_weights, tasks  # noqa: E402
from optax_unf.meta import PES, Backprop, Training, learned_training  # noqa: E402
from optax_unf.meta.particles import particle_shardings, replicated_shardings  # noqa: E402


def measure(name, problem, theta, estimator, inner_steps, horizon):
    state = jax.jit(lambda key: estimator.init(problem, horizon, theta, key))(jax.random.key(0))
    state = jax.device_put(state, particle_shardings(state))
    theta = jax.device_put(theta, replicated_shardings(theta))
    shardings = (replicated_shardings(theta), particle_shardings(state), None)
    estimate = functools.partial(estimator.estimate, problem, horizon)
    step = jax.jit(estimate, out_shardings=shardings)
    start = time.perf_counter()
    compiled = step.lower(theta, state, jax.random.key(0)).compile()
    print(f"{name}_compile {time.perf_counter() - start:.1f} s")
    seconds = []
    for n in range(9):
        start = time.perf_counter()
        _, state, _ = jax.block_until_ready(compiled(theta, state, jax.random.key(n)))
        seconds.append(time.perf_counter() - start)
    print(f"{name} {inner_steps / np.median(seconds[1:]):.0f} inner_steps/s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir")
    args = parser.parse_args()
    task = tasks.get("mlp-fashion-mnist", data_dir=args.data_dir)
    spec = tasks.task_spec(task)
    pes, backprop = PES(pairs=16, truncation=50), Backprop(runs=16, truncation=50)
    for head in ("unf", "deepsets", "none"):
        config = OptimizerConfig(head=head)
        theta = init_weights(config, spec, jax.random.key(0)).theta
        problem = learned_training(config, task)
        measure(f"pes_{head}", problem, theta, pes, 2 * 16 * 50, task.horizon)
        measure(f"backprop_{head}", problem, theta, backprop, 16 * 50, task.horizon)
    measure("pes_adam", Training(task, optax.adam), jnp.float32(1e-2), pes, 2 * 16 * 50, task.horizon)


if __name__ == "__main__":
    main()
