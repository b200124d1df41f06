"""Meta-trains the optimizers in pretrained/: short truncations first, then longer ones.

    python examples/meta_train.py --task cnn-cifar10 --head unf --start mlp-fashion-mnist-tied \\
        --out runs/cnn-cifar10-unf --save pretrained/cnn-cifar10-unf.safetensors

A stopped run continues from its checkpoint when the same command is given again. With `--save FILE` the best
meta-weights and their card are written at the end.
"""

import argparse
import dataclasses
import datetime
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

import jax

# One host device per core: particles are sharded over devices, and each core works on runs of its own.
jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))

from optax_unf import OptimizerConfig, load_weights, save_weights, tasks, transfer_weights  # noqa: E402
from optax_unf.meta import MetaTrainConfig, meta_train  # noqa: E402
from optax_unf.meta.recipes import small_budget  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=tasks.names(), default="mlp-fashion-mnist")
    parser.add_argument("--head", choices=["unf", "deepsets", "nfn", "none"], default="unf")
    parser.add_argument("--coefficients", choices=["full", "tied"], default="full", help="of a UNF head")
    parser.add_argument("--alpha", type=float, default=0.1, help="initial step size")
    parser.add_argument("--start", help="weights to begin with, by name or path: see optax_unf.transfer_weights")
    parser.add_argument("--skip-stages", type=int, default=0, help="leave out the first stages")
    parser.add_argument("--evaluate-every", type=int, default=50)
    parser.add_argument("--evaluate-runs", type=int, default=8)
    parser.add_argument("--data-dir", help="folder with the original data files")
    parser.add_argument("--out", required=True, help="folder for the checkpoint")
    parser.add_argument("--save", type=Path, help="file for the meta-weights; their card goes beside it")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    task = tasks.get(args.task, data_dir=args.data_dir)
    optimizer = OptimizerConfig(head=args.head, coefficients=args.coefficients, alpha=args.alpha)
    stages = small_budget(args.task, args.head, task.horizon)[args.skip_stages :]
    config = MetaTrainConfig(
        stages, task.horizon, evaluate_every=args.evaluate_every, evaluate_runs=args.evaluate_runs, checkpoint_every=10
    )
    key = jax.random.key(args.seed)
    weights = None
    if args.start:
        weights = transfer_weights(
            load_weights(args.start), optimizer, tasks.task_spec(task), jax.random.fold_in(key, 1)
        )
    result = meta_train(optimizer, task, config, key, weights=weights, out=args.out)
    for record in result.curve:
        print(record)
    if args.save:
        card = {
            "task": task.name,
            "data": task.source,
            "command": shlex.join(["python", "examples/meta_train.py", *sys.argv[1:]]),
            "commit": subprocess.run(
                ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
            ).stdout.strip(),
            "date": datetime.date.today().isoformat(),
            "start": args.start,
            "outer_steps": sum(stage.steps for stage in stages),
            "seconds": round(result.seconds),
            "machine": f"{len(os.sched_getaffinity(0))} CPU cores, {platform.machine()}",
            "versions": {name: importlib.metadata.version(name) for name in ("optax-unf", "jax", "flax", "optax")},
            "selection": f"lowest final training loss over {config.evaluate_runs} fresh inner runs",
            "optimizer": dataclasses.asdict(optimizer),
            "config": dataclasses.asdict(config),
            "curve": result.curve,
        }
        save_weights(args.save, result.weights, card=card)


if __name__ == "__main__":
    main()
