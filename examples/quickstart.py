"""Trains a small classifier on handwritten digits with a pretrained UNF optimizer, with Adam and with SGDM.

    python examples/quickstart.py

Adam and SGD with momentum get their best learning rate of a grid, found on other seeds than those reported. Prints a
table and writes the training curves to quickstart.png. Takes about a minute on two CPU cores.
"""

import argparse
import functools
import time

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import optax
from tqdm import tqdm

import optax_unf

mpl.use("agg")
import matplotlib.pyplot as plt

STEPS = 2000
RATES = np.logspace(-3.5, -0.5, 10)


def train(task, optimizer, key):
    """The training loss before each step and the test accuracy: an ordinary optax loop under one `lax.scan`."""
    init_key, batch_key = jax.random.split(key)
    params = task.init(init_key)

    def step(carry, key):
        params, state = carry
        loss, grads = jax.value_and_grad(task.loss)(params, task.sample(key))
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), loss

    keys = jax.random.split(batch_key, STEPS)
    (params, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), keys)
    guesses = task.predict(params, task.test.images.reshape(len(task.test.labels), -1)).argmax(-1)
    return losses, (guesses == task.test.labels).mean()


def best_rate(task, make_optimizer, keys, bar):
    """The rate of the grid with the lowest mean loss over the last 50 steps."""
    run = jax.jit(lambda rate, key: train(task, make_optimizer(rate), key)[0][-50:].mean())
    losses = []
    for rate in RATES:
        losses.append(np.mean([run(jnp.float32(rate), key) for key in keys]))
        bar.update()
    return float(RATES[np.nanargmin(losses)])


def curves(task, optimizer, keys, bar):
    """Losses `[seeds, steps]`, test accuracies `[seeds]`, and the seconds of a step once everything is compiled."""
    run = jax.jit(lambda key: train(task, optimizer, key))
    jax.block_until_ready(run(keys[0]))
    start = time.perf_counter()
    results = []
    for key in keys:
        results.append(jax.device_get(run(key)))
        bar.update()
    losses, accuracies = (np.stack(x) for x in zip(*results, strict=True))
    return losses, accuracies, (time.perf_counter() - start) / (len(keys) * STEPS)


def plot(results, path):
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name, (losses, *_) in results.items():
        smooth = np.stack([np.convolve(run, np.ones(20) / 20, "valid") for run in losses])
        steps = np.arange(smooth.shape[1]) + 20
        (line,) = axes.plot(steps, smooth.mean(0), label=name)
        axes.fill_between(steps, smooth.min(0), smooth.max(0), color=line.get_color(), alpha=0.2, linewidth=0)
    axes.set(xlabel="step", ylabel="training loss (nats, mean of 20 steps)", yscale="log", xscale="log")
    axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="mlp-fashion-mnist-unf", help="a pretrained name or a path")
    parser.add_argument("--task", default="mlp-digits", choices=optax_unf.tasks.names())
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--plot", default="quickstart.png")
    args = parser.parse_args()

    task = optax_unf.tasks.get(args.task)
    tuning_keys = jax.random.split(jax.random.key(1), 2)
    keys = jax.random.split(jax.random.key(0), args.seeds)
    baselines = {"Adam": optax.adam, "SGDM": functools.partial(optax.sgd, momentum=0.9)}
    results = {}
    with tqdm(total=len(baselines) * (len(RATES) + args.seeds) + args.seeds, desc="training") as bar:
        optimizer = optax_unf.unf(args.weights, spec=task.axes)
        results["UNF (pretrained)"] = curves(task, optimizer, keys, bar)
        for name, make in baselines.items():
            rate = best_rate(task, make, tuning_keys, bar)
            results[f"{name} (rate {rate:.2g})"] = curves(task, make(rate), keys, bar)

    marks = (STEPS // 20, STEPS // 4, STEPS)
    print(f"\n{args.task}: training loss, mean of {args.seeds} seeds (mean of the 20 steps up to the one named)\n")
    print(f"{'optimizer':20}{''.join(f'{step:10}' for step in marks)} {'test accuracy':>14} {'time per step':>14}")
    for name, (losses, accuracies, seconds) in results.items():
        row = "".join(f"{losses[:, step - 20 : step].mean():10.4f}" for step in marks)
        print(f"{name:20}{row} {100 * accuracies.mean():12.1f} % {seconds * 1e6:11.0f} us")
    plot(results, args.plot)
    print(f"\nCurves written to {args.plot}")


if __name__ == "__main__":
    main()
