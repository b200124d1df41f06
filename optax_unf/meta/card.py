"""The card of meta-weights: what they are and how they were made."""

import contextlib
import dataclasses
import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from optax_unf.meta.config import MetaTrainConfig
from optax_unf.optimizer.architecture import Architecture, InitialScalars
from optax_unf.optimizer.meta_weights import MetaWeights
from optax_unf.optimizer.theta import to_arrays
from optax_unf.tasks.task import TaskLike, as_task

_PACKAGES = ("optax-unf", "jax", "flax", "optax")


def make_card(
    tasks: Sequence[TaskLike],
    architecture: Architecture,
    config: MetaTrainConfig,
    curve: Sequence[Mapping[str, float]],
    *,
    seconds: float,
    made: Mapping[str, Any],
    scalars: InitialScalars | None = None,
) -> dict[str, Any]:
    """The card, as JSON holds it; `save_weights(..., card=card)` writes it beside the weights.

    Args:
      tasks: what was meta-trained on.
      architecture: of the learned optimizer.
      config: the settings.
      curve: the evaluations, see `MetaTrainResult.curve`.
      seconds: wall time of the run.
      made: see `provenance`.
      scalars: the initial ones of fresh weights.

    Example:
      >>> from optax_unf import tasks
      >>> task = tasks.get("mlp-digits")
      >>> made = provenance(["optax-unf", "meta-train"])
      >>> card = make_card([task], Architecture(), MetaTrainConfig(), [], seconds=1.0, made=made)
      >>> card["task"], card["outer_steps"], card["command"]
      ('mlp-digits', 50000, 'optax-unf meta-train')
    """
    return {
        "task": ", ".join(as_task(task).name for task in tasks),
        "data": ", ".join(dict.fromkeys(as_task(task).source for task in tasks)),
        "command": made["command"],
        "commit": made["commit"],
        "date": made["date"],
        "outer_steps": config.steps,
        "seconds": round(seconds),
        "machine": made["machine"],
        "versions": dict(made["versions"]),
        "selection": f"lowest final training loss over {config.evaluate_runs} fresh inner runs",
        "architecture": dataclasses.asdict(architecture),
        "scalars": scalars and dataclasses.asdict(scalars),
        "config": config.to_dict(),
        "curve": [dict(record) for record in curve],
    }


def this_command() -> list[str]:
    """The program that runs, and its arguments; without `--resume`, which no fresh folder needs."""
    program = Path(sys.argv[0]).name
    arguments = [argument for argument in sys.argv[1:] if argument != "--resume"]
    if program == "__main__.py":
        program = "optax-unf"
    return [program, *arguments] if program == "optax-unf" else ["python", program, *arguments]


def provenance(command: Sequence[str]) -> dict[str, Any]:
    """How and where a result was made: command, commit (empty outside of a git checkout), date, machine, versions.

    Args:
      command: the program and its arguments.
    """
    return {
        "command": shlex.join(command),
        "commit": _commit(),
        "date": datetime.date.today().isoformat(),
        "machine": _machine(),
        "versions": _versions(),
    }


def made_by(made: Mapping[str, Any]) -> str:
    """What `provenance` found, as the last line of a page.

    Example:
      >>> made_by({"command": "optax-unf suite", "commit": "abc", "versions": {"jax": "0.10"}})
      'Made by `optax-unf suite`: commit abc, jax 0.10.'
    """
    commit = [f"commit {made['commit']}"] if made.get("commit") else []
    versions = [f"{name} {version}" for name, version in made.get("versions", {}).items()]
    return f"Made by `{made.get('command', '')}`: {', '.join([*commit, *versions])}."


def cpu_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _machine() -> str:
    cores = f"{cpu_cores()} CPU cores, {platform.machine()}"
    device = jax.devices()[0]
    return cores if device.platform == "cpu" else f"{cores}, {jax.device_count()} x {device.device_kind}"


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        # flax is optional.
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _commit() -> str:
    try:
        done = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip()


def digest(weights: MetaWeights) -> str:
    """What tells these meta-weights from others."""
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(weights.architecture), sort_keys=True).encode())
    for leaf in to_arrays(weights.theta).values():
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()[:16]
