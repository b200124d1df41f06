"""Bias, noise and cost of the gradient estimators, at fixed meta-weights.

    python benchmarks/estimators.py --data-dir DIR [--quick]

Each estimator is run at two points: meta-weights before any meta-training ("early") and pretrained ones ("late"). The
reference is the gradient of the outer loss by backpropagation through whole runs, averaged over many. Prints
`name value unit` per line, then a table in Markdown. With g the reference and e an estimate:

- ms: time of one estimate, the least of all blocks;
- signal: the part of e along g, over the norm of g;
- cosine: of g and the mean of all estimates, whose noise lowers it; and with noise removed, which leaves the bias;
- sd: the square root of the total variance of e, in nats;
- noise: the variance of e over the square of its part along g, the inverse of the squared signal-to-noise ratio of one
  estimate. That part is taken to be g where the estimator has no bias, and that of Backprop for TruncatedES, whose
  expectation is the same but for the smoothing: measured, it would be too noisy;
- seconds to 1: what averaging until signal and noise are equal takes, ms * noise;
- seconds to 0.1: what averaging until the noise is 0.1 nats takes, ms * sd^2 / 0.01: this needs no reference;
- scalar sd: that of the gradient of log(alpha) alone.

What needs g is left out (nan) where the reference is less than three times its own standard error.

Estimates of one run depend on each other, so that the variance comes from means over blocks of two whole runs, times
the length of the block: that of NRES, whose estimates share their noise, would otherwise look too small.
"""

import argparse
import os
import time
from typing import Any

import jax
import numpy as np

jax.config.update("jax_num_cpu_devices", os.cpu_count())

import jax.numpy as jnp  # noqa: E402
from jax.flatten_util import ravel_pytree  # noqa: E402

from optax_unf import load_weights, tasks  # noqa: E402
from optax_unf.meta import NRES, PES, Backprop, FullES, TruncatedES, learned_training  # noqa: E402
from optax_unf.meta.inner import unroll  # noqa: E402
from optax_unf.meta.particles import map_particles, particle_shardings, replicated_shardings  # noqa: E402
from optax_unf.optimizer.meta_weights import init_weights  # noqa: E402

FINAL_STEPS = 10
UNITS = {"ms": "ms", "sd": "nats", "scalar_sd": "nats", "seconds_to_1": "s", "seconds_to_0.1": "s", "diverged": "runs"}
COLUMNS = "ms | signal | cosine | without noise | sd | noise | seconds to 1 | seconds to 0.1 | scalar sd"


def make_reference(problem, horizon, objective):
    """A jitted function of theta and keys: by backpropagation, the gradient of the outer loss of each whole run."""

    def outer_loss(theta, key):
        losses = unroll(problem, theta, problem.start(theta, key), horizon, rematerialize=True)[1]
        return (losses[-FINAL_STEPS:] if objective == "final" else losses).mean()

    @jax.jit
    def gradients(theta, keys):
        return map_particles(lambda key: ravel_pytree(jax.grad(outer_loss)(theta, key))[0], keys)

    return gradients


def make_block(problem, horizon, estimator, length, theta):
    """The estimator's `init`, and `length` estimates as one compiled function: their mean, the state, diverged runs."""

    @jax.jit
    def init(theta, key):
        return estimator.init(problem, horizon, theta, key)

    def block(theta, state, key):
        def step(carry, key):
            total, state = carry
            grad, state, metrics = estimator.estimate(problem, horizon, theta, state, key)
            return (jax.tree.map(jnp.add, total, grad), state), metrics["diverged"]

        zeros = jax.tree.map(jnp.zeros_like, theta)
        (total, state), diverged = jax.lax.scan(step, (zeros, state), jax.random.split(key, length))
        return ravel_pytree(total)[0] / length, state, diverged.sum()

    def start(theta):
        state = init(theta, jax.random.key(2))
        return jax.device_put(state, particle_shardings(state))

    theta, state = jax.device_put(theta, replicated_shardings(theta)), start(theta)
    run = jax.jit(block, out_shardings=(None, particle_shardings(state), None))
    return start, run.lower(theta, state, jax.random.key(3)).compile()


def block_means(start, run, theta, length, blocks):
    """Mean gradient estimate of each block, `[blocks, entries]`, seconds per estimate, and diverged runs."""
    theta, state = jax.device_put(theta, replicated_shardings(theta)), start(theta)
    means, seconds, diverged = [], [], 0
    for n in range(blocks + 1):
        started = time.perf_counter()
        mean, state, count = jax.block_until_ready(run(theta, state, jax.random.fold_in(jax.random.key(3), n)))
        seconds.append((time.perf_counter() - started) / length)
        means.append(np.asarray(mean, np.float64))
        diverged += int(count)
    # All runs start at once: the first block sees too much of their beginnings.
    return np.stack(means[1:]), min(seconds), diverged


def compare(means, length, truth, scalar, expected):
    """The table's numbers from block means, the reference's gradients, and the signal that noise is compared with."""
    blocks, g, mean = len(means), truth.mean(0), means.mean(0)
    variance = means.var(0, ddof=1)
    result = {"sd": np.sqrt(length * variance.sum()), "scalar_sd": np.sqrt(length * variance[scalar])}
    error = truth.var(0, ddof=1).sum() / len(truth)
    if g @ g < 9 * error:
        return dict.fromkeys(("signal", "signal_error", "cosine", "cosine_without_noise", "noise"), np.nan) | result
    # The squared norms of noisy means are too large by their variance.
    squared, norm_squared = g @ g - error, mean @ mean - variance.sum() / blocks
    along = means @ g / squared
    signal = along.mean()
    return result | {
        "signal": signal,
        "signal_error": along.std(ddof=1) / np.sqrt(blocks),
        "cosine": mean @ g / np.linalg.norm(mean) / np.linalg.norm(g),
        "cosine_without_noise": signal * np.sqrt(squared / norm_squared) if norm_squared > 0 else np.nan,
        "noise": length * variance.sum() / ((expected or signal) ** 2 * squared),
    }


def report_reference(name, truth, theta):
    g = truth.mean(0)
    sd = np.sqrt(truth.var(0, ddof=1).sum())
    halves = truth[::2].mean(0), truth[1::2].mean(0)
    cosine = halves[0] @ halves[1] / np.linalg.norm(halves[0]) / np.linalg.norm(halves[1])
    print(f"{name}_reference_entries {len(g)} 1")
    print(f"{name}_reference_norm {np.linalg.norm(g):.4g} nats")
    print(f"{name}_reference_relative_error {sd / np.sqrt(len(truth)) / np.linalg.norm(g):.3f} 1")
    print(f"{name}_reference_sd_of_a_run {sd:.3g} nats")
    print(f"{name}_reference_cosine_of_halves {cosine:.4f} 1")
    for scalar in ("log_alpha", "logit_gamma_0", "beta"):
        column = truth[:, position(theta, scalar)]
        print(f"{name}_reference_{scalar} {column.mean():.4g} nats")
        print(f"{name}_reference_{scalar}_error {column.std(ddof=1) / np.sqrt(len(truth)):.2g} nats", flush=True)


def position(theta, scalar):
    """The index of a scalar of theta in the flat vector."""
    one_hot = {**jax.tree.map(jnp.zeros_like, theta), scalar: jnp.float32(1)}
    return int(ravel_pytree(one_hot)[0].argmax())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir")
    parser.add_argument("--task", default="mlp-fashion-mnist")
    parser.add_argument("--weights", default="mlp-fashion-mnist-unf", help="the late point, and the architecture")
    parser.add_argument("--horizon", type=int, default=400)
    parser.add_argument("--truncations", type=int, nargs="+", default=[50, 200])
    parser.add_argument("--objective", choices=["mean", "final"], default="mean")
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--sigma", type=float, default=0.01)
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--reference-runs", type=int, default=64)
    parser.add_argument("--quick", action="store_true", help="2 pairs, 4 blocks, 24 runs for the reference")
    args = parser.parse_args()
    if args.quick:
        args.pairs, args.blocks, args.reference_runs = 2, 4, 24

    task = tasks.get(args.task, **({"data_dir": args.data_dir} if args.data_dir else {}))
    late = load_weights(args.weights)
    early = init_weights(late.architecture, tasks.task_spec(task), jax.random.key(0))
    problem = learned_training(late.architecture, task)
    es = {"pairs": args.pairs, "sigma": args.sigma, "objective": args.objective, "final_steps": FINAL_STEPS}
    estimators: dict[tuple[str, int], Any] = {}
    for truncation in args.truncations:
        estimators["Backprop", truncation] = Backprop(runs=args.pairs, truncation=truncation, clip_norm=1e9)
        for cls in (TruncatedES, PES, NRES):
            estimators[cls.__name__, truncation] = cls(truncation=truncation, **es)
    estimators["FullES", args.horizon] = FullES(**es)

    points = {"early": early.theta, "late": late.theta}
    gradients = make_reference(problem, args.horizon, args.objective)
    keys = jax.random.split(jax.random.key(1), args.reference_runs)
    truth = {name: np.asarray(gradients(theta, keys), np.float64) for name, theta in points.items()}
    for name, theta in points.items():
        report_reference(name, truth[name], theta)
    scalar = position(early.theta, "log_alpha")
    rows: dict[tuple[str, str, int], dict[str, float]] = {}
    for (kind, truncation), estimator in estimators.items():
        length = 2 * args.horizon // truncation
        start, run = make_block(problem, args.horizon, estimator, length, early.theta)
        for name, theta in points.items():
            means, cost, diverged = block_means(start, run, theta, length, args.blocks)
            expected = {"TruncatedES": rows.get((name, "Backprop", truncation), {}).get("signal"), "Backprop": None}
            row = compare(means, length, truth[name], scalar, expected.get(kind, 1.0))
            row |= {"ms": 1e3 * cost, "diverged": diverged}
            row |= {"seconds_to_1": cost * row["noise"], "seconds_to_0.1": cost * row["sd"] ** 2 / 0.01}
            rows[name, kind, truncation] = row
            for key, value in row.items():
                print(f"{name}_{kind}_{truncation}_{key} {value:.4g} {UNITS.get(key, '1')}", flush=True)
    print(f"| point | estimator | K | {COLUMNS} |\n|---|---|---|{'---|' * (COLUMNS.count('|') + 1)}")
    for (name, kind, truncation), row in sorted(rows.items(), key=lambda item: item[0][0]):
        print(
            f"| {name} | {kind} | {truncation} | {row['ms']:.0f} | {row['signal']:.2f} ± {row['signal_error']:.2f} "
            f"| {row['cosine']:.2f} | {row['cosine_without_noise']:.2f} | {row['sd']:.2g} | {row['noise']:.2g} "
            f"| {row['seconds_to_1']:.2g} | {row['seconds_to_0.1']:.2g} | {row['scalar_sd']:.2g} |"
        )


if __name__ == "__main__":
    main()
