"""The commands `optax-unf zoo`."""

import time
from pathlib import Path

from optax_unf.zoo.cells import CellName
from optax_unf.zoo.config import ZooConfig
from optax_unf.zoo.make import make_shards


def make(
    *,
    out: Path,
    models: int = 10_000,
    hidden: int = 16,
    cell: CellName = "gru",
    largest: int = 59,
    seed: int = 0,
) -> None:
    """Trains a zoo; called again, goes on.

    Args:
      out: Folder of the shards.
      models: How many, rounded up to whole shards.
      hidden: Hidden units of encoder and decoder.
      cell: The kind of cell.
      largest: The largest operand.
      seed: Of initial weights, batches and settings.
    """
    config = ZooConfig(hidden=hidden, cell=cell, largest=largest, seed=seed)

    def report(done: int, of: int) -> None:
        print(f"{time.strftime('%H:%M:%S')} {done} of {of} shards of {config.shard} models", flush=True)

    make_shards(config, models, out, report=report)


if __name__ == "__main__":
    import tyro

    tyro.cli(make)
