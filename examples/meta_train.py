"""Meta-trains the optimizers in pretrained/ on Fashion-MNIST: short truncations first, then longer, then PES.

    python examples/meta_train.py --head unf --out runs/mlp-fashion-mnist-unf

A stopped run continues from its checkpoint when the same command is given again.
"""

import argparse
import os

import jax

# One host device per core: particles are sharded over devices, and each core works on runs of its own.
jax.config.update("jax_num_cpu_devices", os.cpu_count())

from optax_unf import OptimizerConfig, tasks  # noqa: E402
from optax_unf.meta import PES, Backprop, MetaTrainConfig, Stage, meta_train  # noqa: E402

STAGES = (
    Stage(Backprop(runs=16, truncation=50), steps=500, learning_rate=1e-2, schedule="cosine", warmup=20),
    Stage(Backprop(runs=8, truncation=200), steps=150, learning_rate=3e-3, schedule="cosine", warmup=5),
    Stage(Backprop(runs=8, truncation=500), steps=80, learning_rate=3e-3, schedule="cosine", warmup=5),
    Stage(PES(pairs=16, truncation=50), steps=400, learning_rate=3e-4, schedule="cosine", warmup=20),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=tasks.names(), default="mlp-fashion-mnist")
    parser.add_argument("--head", choices=["unf", "deepsets", "none"], default="unf")
    parser.add_argument("--data-dir", help="folder with the original data files")
    parser.add_argument("--out", required=True, help="folder for the checkpoint")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    task = tasks.get(args.task, data_dir=args.data_dir)
    config = MetaTrainConfig(STAGES, horizon=task.horizon)
    result = meta_train(OptimizerConfig(head=args.head), task, config, jax.random.key(args.seed), out=args.out)
    for record in result.curve:
        print(record)


if __name__ == "__main__":
    main()
