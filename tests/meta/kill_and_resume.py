"""Kills a meta-training run at random moments and resumes it until it finishes.

    python tests/meta/kill_and_resume.py --trials 20

Each trial kills the run several times, by SIGKILL after a random delay or as soon as it begins to write a checkpoint.
It fails unless the final meta-weights have the bits, and the metrics the numbers, of a run that nobody killed.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

SCRIPT = Path(__file__).with_name("resumable_run.py")


def start(out: Path, cache: Path, **variables: str) -> subprocess.Popen:
    """A process that has imported everything and begins to meta-train. Compiled programs are kept in `cache`."""
    environment = os.environ | {
        **variables,
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    process = subprocess.Popen([sys.executable, SCRIPT, out], stdout=subprocess.PIPE, env=environment, text=True)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "started\n"
    return process


def finish(out: Path, cache: Path) -> None:
    process = start(out, cache)
    assert process.wait(timeout=120) == 0


def after(seconds: float) -> Callable[[subprocess.Popen, Path], None]:
    def wait(process: subprocess.Popen, out: Path) -> None:
        time.sleep(seconds)

    return wait


def in_a_save(beyond: int) -> Callable[[subprocess.Popen, Path], None]:
    """Waits until a checkpoint of a later outer step has a temporary name."""

    def wait(process: subprocess.Popen, out: Path) -> None:
        while process.poll() is None and all(step <= beyond for step in unfinished(out)):
            time.sleep(0.0005)

    return wait


def unfinished(out: Path) -> list[int]:
    return [int(path.name.split(".")[0]) for path in (out / "checkpoints").glob("*.orbax-checkpoint-tmp")]


def finished(out: Path) -> list[int]:
    return sorted(int(path.name) for path in (out / "checkpoints").glob("*") if path.name.isdigit())


def interrupted(out: Path, cache: Path, waits: Sequence[Callable[[subprocess.Popen, Path], None]]) -> list[str]:
    """Kills the run once after each wait, then lets it finish; what each kill found."""
    found = []
    for wait in waits:
        process = start(out, cache)
        wait(process, out)
        process.send_signal(signal.SIGKILL)
        if process.wait(timeout=60) == -signal.SIGKILL:
            half = "".join(f", writing {step}" for step in unfinished(out))
            found.append(f"at {max(finished(out), default=0)}{half}")
        else:
            found.append("ended")
    finish(out, cache)
    return found


def same_result(a: Path, b: Path) -> bool:
    x, y = (np.load(out / "result.npz") for out in (a, b))
    same = all(x[name].dtype == y[name].dtype and x[name].tobytes() == y[name].tobytes() for name in x.files)
    return x.files == y.files and same and metrics(a) == metrics(b)


def metrics(out: Path) -> list[dict[str, float]]:
    """The records of a run without their times."""
    records = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    times = ("seconds", "inner_steps_per_second")
    return [{name: value for name, value in record.items() if name not in times} for record in records]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--kills", type=int, default=3, help="in each trial")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder, "cache")
        finish(whole := Path(folder, "whole"), cache)
        started = time.perf_counter()
        finish(Path(folder, "again"), cache)
        seconds = time.perf_counter() - started
        for trial in range(args.trials):
            out = Path(folder, str(trial))
            waits = [
                in_a_save(rng.randrange(50)) if rng.random() < 0.3 else after(rng.uniform(0, seconds / 2))
                for _ in range(args.kills)
            ]
            found = interrupted(out, cache, waits)
            same = same_result(out, whole)
            print(f"trial {trial}: {'same bits' if same else 'DIFFERENT'}; killed {'; '.join(found)}", flush=True)
            if not same:
                sys.exit(1)


if __name__ == "__main__":
    main()
