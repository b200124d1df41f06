"""Pretrained optimizers against tuned Adam and SGDM on mlp-fashion-mnist.

    python benchmarks/compare.py --data-dir DIR --out docs/results

Each baseline gets the best rate of a 10-point grid, by the mean final training loss over 3 tuning seeds. All
optimizers then run on the same 10 fresh seeds: equal seeds have equal initial parameters and batches. Prints
`name value unit` per line, and writes a table and a figure.
"""

import argparse
import functools
import os
from pathlib import Path

import jax
import matplotlib as mpl
import numpy as np

mpl.use("agg")
jax.config.update("jax_num_cpu_devices", os.cpu_count())

import jax.numpy as jnp  # noqa: E402
import matplotlib.pyplot as plt  # noqa: E402
import optax  # noqa: E402

from optax_unf import load_weights, tasks  # noqa: E402
from optax_unf.meta import Training, learned_training, training_losses  # noqa: E402

STEPS = 2000
MARKS = (100, 500, 1000)
RATES = np.geomspace(1e-3, 1.0, 10)
LEARNED = {"UNF": "mlp-fashion-mnist-unf", "Deep Sets": "mlp-fashion-mnist-deepsets", "SGDM": "mlp-fashion-mnist-sgdm"}
BASELINES = {
    "Adam": optax.adam,
    "Adam, cosine": lambda rate: optax.adam(optax.cosine_decay_schedule(rate, STEPS)),
    "SGDM, tuned": functools.partial(optax.sgd, momentum=0.9),
}


def at(losses, step):
    """The loss around an inner step, or over the last 50, per seed."""
    return losses[:, -50:].mean(1) if step == STEPS else losses[:, step - 10 : step + 10].mean(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=10)
    args = parser.parse_args()
    task = tasks.get("mlp-fashion-mnist", data_dir=args.data_dir)
    tuning_keys = jax.random.split(jax.random.key(2024), 4)
    keys = jax.random.split(jax.random.key(2025), args.seeds)

    curves = {}
    for name, weights_name in LEARNED.items():
        weights = load_weights(weights_name)
        problem = learned_training(weights.config, task)
        run = jax.jit(functools.partial(training_losses, problem, steps=STEPS))
        curves[f"{name}, meta-trained"] = np.asarray(run(weights.theta, keys))
    for name, make in BASELINES.items():
        run = jax.jit(functools.partial(training_losses, Training(task, make), steps=STEPS))
        tuned = [np.mean(at(np.asarray(run(jnp.float32(rate), tuning_keys)), STEPS)) for rate in RATES]
        best = float(RATES[np.nanargmin(tuned)])
        print(f"best_rate_of_{name.replace(', ', '_').replace(' ', '_')} {best:.3g} -", flush=True)
        curves[f"{name} (rate {best:.2g})"] = np.asarray(run(jnp.float32(best), keys))

    header = f"| optimizer | {' | '.join(f'step {step}' for step in MARKS)} | last 50 of {STEPS} | UNF better by |"
    lines = [header, "|" + "---|" * (len(MARKS) + 3)]
    ours = next(iter(curves.values()))
    for name, losses in curves.items():
        cells = []
        for step in (*MARKS, STEPS):
            values = at(losses, step)
            cells.append(f"{values.mean():.4f} ± {values.std(ddof=1) / np.sqrt(len(values)):.4f}")
            label = name.split(" (")[0].replace(", ", "_").replace(" ", "_").lower()
            print(f"{label}_at_{step} {values.mean():.4f} nats")
        gap = at(losses, STEPS) - at(ours, STEPS)
        error = gap.std(ddof=1) / np.sqrt(len(gap))
        cells.append(f"{gap.mean():.4f} ± {error:.4f}" if losses is not ours else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name, losses in curves.items():
        smooth = np.stack([np.convolve(run, np.ones(50) / 50, "valid") for run in losses])
        steps = np.arange(smooth.shape[1]) + 25
        mean, error = smooth.mean(0), smooth.std(0, ddof=1) / np.sqrt(len(smooth))
        (line,) = axes.plot(steps, mean, label=name)
        axes.fill_between(steps, mean - error, mean + error, color=line.get_color(), alpha=0.25, linewidth=0)
    axes.set(xlabel="inner step", ylabel="training loss (nats, mean of 50 steps)", ylim=(0.33, 0.75))
    axes.set_title(f"mlp-fashion-mnist: mean and standard error of {args.seeds} seeds")
    axes.legend()
    args.out.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out / "mlp-fashion-mnist.png", dpi=150)
    table = "\n".join(lines)
    (args.out / "mlp-fashion-mnist.md").write_text(
        f"# mlp-fashion-mnist\n\nTraining loss in nats, mean and standard error of {args.seeds} seeds; the last column "
        f"is the mean of the differences to UNF, seed by seed, at the end of the run.\n\n{table}\n\n"
        "![training curves](mlp-fashion-mnist.png)\n\n"
        "Made by `python benchmarks/compare.py --out docs/results`.\n"
    )
    print(table)


if __name__ == "__main__":
    main()
