"""Inner steps per second of meta-training on mlp-fashion-mnist.

    python benchmarks/meta_training.py --data-dir DIR

One inner step is one training step of one particle. `over_parts` is an outer step of PES over the same number of inner
gradients and optimizer steps, each measured alone, on the same devices. Prints `name value unit` per line; compilation
apart.
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

from optax_unf import Architecture, init_weights, tasks  # noqa: E402
from optax_unf.meta import PES, Backprop, Training, learned_training  # noqa: E402
from optax_unf.meta.estimators.estimator import start_runs  # noqa: E402
from optax_unf.meta.particles import map_particles, particle_shardings, replicated_shardings  # noqa: E402


def seconds(call, repeats=8):
    """The median time of a call that has been compiled and run."""
    times = []
    for n in range(repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(call(n))
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:]))


def seconds_of_parts(problem, theta, particles, length):
    """Inner gradients and optimizer steps of all particles, each alone: `length` of them in a row."""
    task, optimizer = problem.task, problem.optimizer
    runs = jax.jit(lambda key: start_runs(problem, theta, key, particles))(jax.random.key(0))
    thetas = jax.tree.map(lambda x: jnp.broadcast_to(x, (particles, *x.shape)), theta)

    def gradients(particle):
        _, run = particle

        def step(total, n):
            loss, grads = jax.value_and_grad(task.loss)(run.params, task.sample(jax.random.fold_in(run.key, n)))
            return jax.tree.map(jnp.add, total, grads), loss

        return jax.lax.scan(step, run.params, jnp.arange(length))

    def updates(particle):
        theta, run = particle

        def step(carry, _):
            params, state = carry
            updates, state = optimizer(theta).update(run.params, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (run.params, run.optimizer), length=length)[0]

    inputs = jax.device_put((thetas, runs), particle_shardings((thetas, runs)))
    total = 0.0
    for part in (gradients, updates):
        compiled = jax.jit(functools.partial(map_particles, part)).lower(inputs).compile()
        total += seconds(lambda _, compiled=compiled: compiled(inputs))
    return total


def measure(name, problem, theta, estimator, inner_steps, horizon):
    """Prints the rate of an estimator; returns the seconds of an estimate."""
    state = jax.jit(lambda key: estimator.init(problem, horizon, theta, key))(jax.random.key(0))
    state = jax.device_put(state, particle_shardings(state))
    theta = jax.device_put(theta, replicated_shardings(theta))
    shardings = (replicated_shardings(theta), particle_shardings(state), None)
    estimate = functools.partial(estimator.estimate, problem, horizon)
    step = jax.jit(estimate, out_shardings=shardings)
    start = time.perf_counter()
    compiled = step.lower(theta, state, jax.random.key(0)).compile()
    print(f"{name}_compile {time.perf_counter() - start:.1f} s")

    def call(n):
        nonlocal state
        _, state, _ = result = compiled(theta, state, jax.random.key(n))
        return result

    taken = seconds(call)
    print(f"{name} {inner_steps / taken:.0f} inner_steps/s", flush=True)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir")
    args = parser.parse_args()
    task = tasks.get("mlp-fashion-mnist", data_dir=args.data_dir)
    spec = tasks.task_spec(task)
    pes, backprop = PES(pairs=16, truncation=50), Backprop(runs=16, truncation=50)
    for head in ("unf", "deepsets", "none"):
        config = Architecture(head=head)
        theta = init_weights(config, spec, jax.random.key(0)).theta
        problem = learned_training(config, task)
        taken = measure(f"pes_{head}", problem, theta, pes, 2 * 16 * 50, task.horizon)
        print(f"pes_{head}_over_parts {taken / seconds_of_parts(problem, theta, 2 * 16, 50):.2f} x", flush=True)
        measure(f"backprop_{head}", problem, theta, backprop, 16 * 50, task.horizon)
    measure("pes_adam", Training(task, optax.adam), jnp.float32(1e-2), pes, 2 * 16 * 50, task.horizon)


if __name__ == "__main__":
    main()
