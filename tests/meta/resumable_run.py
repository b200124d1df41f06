"""A short meta-training run that can be killed: `python resumable_run.py OUT`. At its end it writes OUT/result.npz.

Checkpoints come so often that much of the run is spent in writing them.
"""

import sys
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from optax_unf import Architecture
from optax_unf.meta import PES, Backprop, MetaTrainConfig, Stage, meta_train


class Quadratic:
    axes: ClassVar = {"w": ("out", "in")}

    def init(self, key):
        return {"w": jax.random.normal(key, (2, 3))}

    def sample(self, key):
        return 0.1 * jax.random.normal(key, (2, 3))

    def loss(self, params, batch):
        return jnp.mean((params["w"] - batch) ** 2)


CONFIG = MetaTrainConfig(
    (
        Stage(Backprop(runs=2, truncation=5), steps=30, learning_rate=1e-2, schedule="cosine", warmup=2),
        Stage(PES(pairs=2, truncation=10), steps=30, learning_rate=1e-3, scalar_rate=1e-2),
    ),
    horizon=20,
    evaluate_every=7,
    evaluate_runs=2,
    checkpoint_every=3,
)


def run(out, config=CONFIG, **kwargs):
    optimizer = Architecture(head="deepsets", hidden_channels=4, hidden_layers=1)
    return meta_train(optimizer, Quadratic(), config, jax.random.key(0), out=out, progress=False, **kwargs)


def main() -> None:
    out = Path(sys.argv[1])
    print("started", flush=True)
    result = run(out)
    leaves = jax.tree.leaves((result.weights, result.last))
    np.savez(out / "result.npz", *leaves, curve=[record["final_loss"] for record in result.curve])


if __name__ == "__main__":
    main()
