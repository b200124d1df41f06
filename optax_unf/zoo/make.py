"""Makes a zoo, shard by shard."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from optax_unf._files import write_text
from optax_unf.spec.paths import leaves_by_path
from optax_unf.zoo.config import ZooConfig
from optax_unf.zoo.shards import Arrays, Shards
from optax_unf.zoo.training import Settings, Trained, Trainer, draw_settings

WEIGHTS = "weights/"


def make_shards(
    config: ZooConfig, models: int, out: Path, *, report: Callable[[int, int], None] = lambda done, of: None
) -> Shards:
    """Trains the models that are not in a folder yet.

    Writes OUT/config.json and OUT/shards/. Called again, also after it was killed, it goes on; with more models, too.

    Args:
      config: the zoo.
      models: how many there shall be, rounded up to whole shards.
      out: the folder.
      report: is called with the shards that are there and those that shall be, first and after each.

    Raises:
      ValueError: the folder holds a zoo of other settings.
    """
    _check_same(config, out / "config.json")
    shards, trainer = Shards(out / "shards"), Trainer(config)
    wanted = range(-(-models // config.shard))
    missing = [number for number in wanted if number not in shards.numbers()]
    report(len(wanted) - len(missing), len(wanted))
    train = jax.jit(trainer.train, static_argnums=1)
    for done, number in enumerate(missing, len(wanted) - len(missing) + 1):
        shards.write(number, _shard(config, number, train))
        report(done, len(wanted))
    return shards


def _shard(config: ZooConfig, number: int, train: Callable[[Settings, int, int], Trained]) -> Arrays:
    start = time.perf_counter()
    batch_size, steps = config.of_shard(number)
    models = jnp.arange(number * config.shard, (number + 1) * config.shard)
    settings = draw_settings(config, models)
    parts = [
        jax.device_get(train(jax.tree.map(lambda x: x[first : first + config.lanes], settings), batch_size, steps))  # noqa: B023
        for first in range(0, config.shard, config.lanes)
    ]
    trained = jax.tree.map(lambda *xs: np.concatenate(xs), *parts)
    full = np.full(config.shard, 1.0, np.float32)
    return {
        **{WEIGHTS + path: x for path, x in leaves_by_path(trained.params).items()},
        "success_rate": trained.success_rate,
        "test_loss": trained.test_loss,
        "learning_rate": np.asarray(settings.learning_rate),
        "init_scale": np.asarray(settings.init_scale),
        "weight_decay": np.asarray(settings.weight_decay),
        "batch_size": batch_size * full,
        "steps": steps * full,
        "seconds": (time.perf_counter() - start) / config.shard * full,
    }


def _check_same(config: ZooConfig, path: Path) -> None:
    if not path.is_file():
        write_text(path, json.dumps(config.to_dict(), indent=1) + "\n")
        return
    there = json.loads(path.read_text(encoding="utf-8"))
    other = [name for name, setting in config.to_dict().items() if there.get(name) != setting]
    if other:
        shown = ", ".join(f"{name} {there.get(name)!r} and not {config.to_dict()[name]!r}" for name in other)
        raise ValueError(f"{path.parent} must hold a zoo of the same settings, but has {shown}. Give a new folder.")
