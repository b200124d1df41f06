"""Meta-trains the optimizers in pretrained/ on Fashion-MNIST: short truncations first, then longer, then PES.

    python examples/meta_train.py --head unf --out runs/mlp-fashion-mnist-unf

A stopped run continues from its checkpoint when the same command is given again. With `--save FILE` the best
meta-weights and their card are written at the end.
"""

import argparse
import dataclasses
import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import jax

# One host device per core: particles are sharded over devices, and each core works on runs of its own.
jax.config.update("jax_num_cpu_devices", os.cpu_count())

from optax_unf import OptimizerConfig, save_weights, tasks  # noqa: E402
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
    parser.add_argument("--head", choices=["unf", "deepsets", "nfn", "none"], default="unf")
    parser.add_argument("--coefficients", choices=["full", "tied"], default="full", help="of a UNF head")
    parser.add_argument("--data-dir", help="folder with the original data files")
    parser.add_argument("--out", required=True, help="folder for the checkpoint")
    parser.add_argument("--save", type=Path, help="file for the meta-weights; their card goes beside it")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    task = tasks.get(args.task, data_dir=args.data_dir)
    optimizer = OptimizerConfig(head=args.head, coefficients=args.coefficients)
    config = MetaTrainConfig(STAGES, horizon=task.horizon)
    result = meta_train(optimizer, task, config, jax.random.key(args.seed), out=args.out)
    for record in result.curve:
        print(record)
    if args.save:
        card = {
            "task": task.name,
            "command": f"python examples/meta_train.py --task {args.task} --head {args.head} --coefficients "
            f"{args.coefficients} --seed {args.seed} --out {args.out} --save {args.save}",
            "commit": subprocess.run(
                ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
            ).stdout.strip(),
            "date": datetime.date.today().isoformat(),
            "outer_steps": sum(stage.steps for stage in STAGES),
            "seconds": round(result.seconds),
            "machine": f"{os.cpu_count()} CPU cores, {platform.machine()}",
            "versions": {name: importlib.metadata.version(name) for name in ("optax-unf", "jax", "flax", "optax")},
            "selection": f"lowest final training loss over {config.evaluate_runs} fresh inner runs",
            "optimizer": dataclasses.asdict(optimizer),
            "config": dataclasses.asdict(config),
            "curve": result.curve,
        }
        save_weights(args.save, result.weights, card=card)


if __name__ == "__main__":
    main()
