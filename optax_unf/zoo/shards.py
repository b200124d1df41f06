"""Shards of a zoo on disk: each is there whole or not at all."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
from jaxtyping import Shaped

from optax_unf._safetensors import write_arrays

Arrays = Mapping[str, Shaped[np.ndarray, "models ..."]]


class Shards:
    """The shards in a folder.

    Args:
      folder: where they are; it is made when the first is written.

    Example:
      >>> import tempfile
      >>> shards = Shards(Path(tempfile.mkdtemp()))
      >>> shards.write(3, {"success_rate": np.zeros(64)})
      >>> shards.numbers(), shards.read(3)["success_rate"].shape
      ((3,), (64,))
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def numbers(self) -> tuple[int, ...]:
        """The numbers of the shards that are there."""
        return tuple(sorted(int(path.stem) for path in self.folder.glob("*.safetensors")))

    def write(self, number: int, arrays: Arrays) -> None:
        """Writes a shard."""
        write_arrays(self._path(number), arrays, {})

    def read(self, number: int) -> Arrays:
        """Reads a shard.

        Raises:
          ValueError: the file is damaged.
        """
        try:
            return safetensors.numpy.load_file(self._path(number))
        except safetensors.SafetensorError as error:
            raise ValueError(
                f"{self._path(number)} must be a shard of a zoo, but is damaged: {error}. Delete it, and its models "
                f"are trained again."
            ) from error

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:05d}.safetensors"
