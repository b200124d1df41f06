"""Estimates and a short meta-training run on all devices, of one process or of several.

`python distributed_run.py OUT [--processes N --process-id N --coordinator HOST:PORT] [--signal NUMBER]`

The first process writes OUT/estimates.npz and OUT/run.npz. With `--signal`, there are no estimates, and this process
sends itself the signal after the fourth outer step.
"""

import argparse
import functools
import os
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from resumable_run import Quadratic

from optax_unf import Architecture
from optax_unf.meta import NRES, PES, Backprop, MetaTrainConfig, Stage, distributed, meta_train
from optax_unf.meta.metrics import Reporter
from optax_unf.meta.particles import particle_shardings, placed, replicated_shardings


class Descent:
    """Steps down a bowl that is noisy, at a rate that theta gives to each coordinate."""

    def start(self, theta, key):
        return {"x": jax.random.normal(key, (3,)), "steps": jnp.zeros([], jnp.int32), "key": key}

    def step(self, theta, run):
        x = run["x"] + 0.1 * jax.random.normal(jax.random.fold_in(run["key"], run["steps"]), (3,))
        rate = theta["scale"] * jax.nn.sigmoid(theta["rates"])
        return {**run, "x": x - rate * x, "steps": run["steps"] + 1}, jnp.mean(x**2)


# Numbers of particles that eight devices divide, and one that they do not.
ESTIMATORS = {
    "pes": PES(pairs=8, truncation=2),
    "nres": NRES(pairs=3, truncation=2, objective="mean"),
    "backprop": Backprop(runs=8, truncation=2),
}
CONFIG = MetaTrainConfig(
    (
        Stage(Backprop(runs=8, truncation=2), steps=6, learning_rate=1e-2),
        Stage(PES(pairs=8, truncation=2), steps=34, learning_rate=1e-3),
    ),
    horizon=4,
    evaluate_every=5,
    evaluate_runs=2,
    checkpoint_every=3,
)


def estimates() -> dict[str, np.ndarray]:
    """The gradient that each estimator gives the second time, its loss, and the runs after it."""
    problem = Descent()
    theta = {"rates": jnp.array([-1.0, 0.0, 1.0]), "scale": jnp.array(0.5)}
    theta = placed(theta, replicated_shardings(theta))
    init = jax.jit(lambda key: {name: e.init(problem, 4, theta, key) for name, e in ESTIMATORS.items()})
    shardings = particle_shardings(jax.eval_shape(init, jax.random.key(0)))

    @functools.partial(jax.jit, out_shardings=(None, shardings, None))
    def estimate(states, key):
        found = {name: e.estimate(problem, 4, theta, states[name], key) for name, e in ESTIMATORS.items()}
        return tuple({name: one[part] for name, one in found.items()} for part in range(3))

    states = placed(init(jax.random.key(0)), shardings)
    for step in range(2):
        grads, states, metrics = estimate(states, jax.random.key(step))
    runs = {name: getattr(state, "particles", state).runs["x"] for name, state in states.items()}
    found = distributed.fetch({"gradient": grads, "runs": runs, "loss": metrics})
    arrays = {f"{name} {part}": ravel_pytree(found[part][name])[0] for part in found for name in ESTIMATORS}
    return arrays | {"gathers of pes": np.array(_gathers(problem, theta, states["pes"], shardings["pes"]))}


def _gathers(problem: Descent, theta, state, shardings) -> int:
    """How often the compiled program of PES gathers arrays: both runs of a pair should be on one device."""

    @functools.partial(jax.jit, out_shardings=(None, shardings, None))
    def estimate(state, key):
        return ESTIMATORS["pes"].estimate(problem, 4, theta, state, key)

    return estimate.lower(state, jax.random.key(0)).compile().as_text().count(" all-gather(")


def run(out: Path) -> dict[str, np.ndarray]:
    """The weights and evaluations of a run."""
    result = meta_train(Architecture(head="none"), Quadratic(), CONFIG, jax.random.key(0), out=out, progress=False)
    return {
        "best": ravel_pytree(result.weights.theta)[0],
        "last": ravel_pytree(result.last.theta)[0],
        "curve": np.array([record["final_loss"] for record in result.curve]),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--processes", type=int)
    parser.add_argument("--process-id", type=int)
    parser.add_argument("--coordinator")
    parser.add_argument("--signal", type=int)
    args = parser.parse_args()
    if args.processes:
        distributed.initialize(args.coordinator, args.process_id, args.processes, heartbeat_seconds=10)
    if args.signal is None:
        found = estimates()
        if distributed.is_first():
            np.savez(args.out / "estimates.npz", **found)
    else:
        _send_after(4, args.signal)
    found = run(args.out)
    if distributed.is_first():
        np.savez(args.out / "run.npz", **found)


def _send_after(step: int, number: int) -> None:
    report = Reporter.step

    def reported(self, count, *rest):
        report(self, count, *rest)
        if count == step:
            os.kill(os.getpid(), number)
        # jax looks for SIGTERM once a second.
        time.sleep(0.1 if count >= step else 0)

    Reporter.step = reported


if __name__ == "__main__":
    main()
