"""The figures of docs/results/universal.md: `python benchmarks/reach.py [--times]`.

Speed-ups on the same runs, from docs/results/records.npz; with `--times` also the time of a step on each unseen
network, which wants a machine that does nothing else.
"""

import argparse
from pathlib import Path

import numpy as np

from optax_unf.compare.contenders import ADAM, MUON, candidate
from optax_unf.compare.records import Records, bundled, merged
from optax_unf.compare.runs import seconds_per_step
from optax_unf.compare.speed import geometric_mean
from optax_unf.compare.suite import UNSEEN
from optax_unf.compare.summary import speed_ups
from optax_unf.tasks.task import as_task

RECORDS = Path(__file__).parents[1] / "docs" / "results" / "records.npz"
PAIRS = (
    ("universal", "Adam 1e-3"),
    ("universal", "Adam, cosine"),
    ("universal", "Muon, cosine"),
    ("universal", "Prodigy, cosine"),
    ("universal", "optax_unf:orthogonal_prodigy"),
    ("universal, inferred spec", "universal"),
)


def print_speed_ups(records):
    for name, other in PAIRS:
        ratios = np.array([speed_ups(records.get(task, name), records.get(task, other)) for task in UNSEEN]).T
        mean, error = geometric_mean(ratios)
        by_task = np.exp(np.log(ratios).mean(0))
        behind = [f"{task} {x:.2f}" for task, x in zip(UNSEEN, by_task, strict=True) if x < 1]
        print(f"{name} over {other}: {mean:.3f} ± {error:.3f}, least {by_task.min():.2f}, behind on {behind}")


def print_times(records):
    universal = candidate("universal")
    in_time = []
    for name, make in UNSEEN.items():
        task = as_task(make())
        adam = seconds_per_step(ADAM, task, 1e-3)
        mine, muon = seconds_per_step(universal, task, 1.0) / adam, seconds_per_step(MUON, task, 0.02) / adam
        steps = speed_ups(records.get(name, "universal"), records.get(name, ADAM.name))
        in_time.append(np.exp(np.log(steps).mean()) / mine)
        print(f"{name:<20}{1e3 * adam:8.2f} ms{mine:8.2f}{muon:8.2f}{in_time[-1]:8.2f}", flush=True)
    print(f"geometric mean in time: {np.exp(np.log(in_time).mean()):.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", action="store_true")
    arguments = parser.parse_args()
    records = merged(bundled(), Records.read(RECORDS))
    print_speed_ups(records)
    if arguments.times:
        print_times(records)
