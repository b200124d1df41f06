"""A zoo as one object, and as one file."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import DTypeLike, Float, Integer

from optax_unf._files import write_text
from optax_unf._safetensors import nested, read_arrays, write_arrays
from optax_unf.nn.stacked import Stacked, check_finite
from optax_unf.spec.paths import leaves_by_path, show_path
from optax_unf.zoo.config import ZooConfig
from optax_unf.zoo.make import WEIGHTS
from optax_unf.zoo.seq2seq import Seq2Seq
from optax_unf.zoo.shards import Arrays, Shards

_FORMAT = "optax_unf zoo 1"
BUNDLED = Path(__file__).parent / "bundled" / "small.safetensors"


@dataclasses.dataclass(frozen=True, eq=False)
class Zoo:
    """A population of trained models of one architecture.

    Attributes:
      config: how they were made.
      params: their parameters, stacked: `[models, *shape]`.
      records: `[models]` of each: success_rate, test_loss, and the settings that differ.

    Raises:
      ValueError: a tensor is missing or has another shape, weights are not finite, or a success rate is not in [0, 1];
        the message has the index of the first such model.
    """

    config: ZooConfig
    params: Stacked
    records: Mapping[str, Float[np.ndarray, " models"]]

    def __post_init__(self) -> None:
        if "success_rate" not in self.records:
            raise ValueError(f"A zoo must record success_rate of its models, but records {sorted(self.records)}.")
        _check_shapes(self)
        check_finite(self.params)
        rates = np.asarray(self.success_rate)
        bad = ~((rates >= 0) & (rates <= 1))
        if bad.any():
            index = int(np.argmax(bad))
            raise ValueError(
                f"Success rates must be between 0 and 1, but that of model {index} is {rates[index]}. Leave it out."
            )

    def __len__(self) -> int:
        """How many models there are."""
        return len(self.success_rate)

    @property
    def success_rate(self) -> Float[np.ndarray, " models"]:
        """The share of held-out questions that each model answers without any error."""
        return self.records["success_rate"]

    @property
    def model(self) -> Seq2Seq:
        """The architecture."""
        return Seq2Seq(self.config.hidden, self.config.cell)

    def take(self, models: Integer[np.ndarray, " some"]) -> "Zoo":
        """Some of the models, by their indices."""
        records = {name: x[models] for name, x in self.records.items()}
        return Zoo(self.config, jax.tree.map(lambda x: x[models], self.params), records)


def gather(config: ZooConfig, shards: Shards, numbers: tuple[int, ...] | None = None) -> Zoo:
    """The models of shards as one zoo, without those that diverged.

    Args:
      config: how they were made.
      shards: the shards.
      numbers: which; by default all.

    Raises:
      ValueError: there is no shard, or one is damaged.
    """
    parts = [shards.read(number) for number in (shards.numbers() if numbers is None else numbers)]
    if not parts:
        raise ValueError(f"{shards.folder} must hold shards of a zoo, but holds none. Make some: optax-unf zoo make.")
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    weights = [x.reshape(len(x), -1) for name, x in arrays.items() if name.startswith(WEIGHTS)]
    is_finite = np.all([np.isfinite(x).all(1) for x in weights], axis=0)
    return _zoo(config, {name: x[is_finite] for name, x in arrays.items()})


def save_zoo(
    path: str | Path, zoo: Zoo, *, card: Mapping[str, Any] | None = None, dtype: DTypeLike = "float32"
) -> None:
    """Writes a zoo to a safetensors file.

    Args:
      path: the file. It is written under a temporary name and renamed.
      zoo: the zoo.
      card: what it is and how it was made; written beside the file as `<name>.json`.
      dtype: of the weights; float16 halves the file.
    """
    path = Path(path)
    weights = {WEIGHTS + name: np.asarray(x, dtype) for name, x in leaves_by_path(zoo.params).items()}
    records = {name: np.asarray(x, np.float32) for name, x in zoo.records.items()}
    metadata = {"format": _FORMAT, "config": json.dumps(zoo.config.to_dict())}
    write_arrays(path, {**weights, **records}, metadata)
    if card is not None:
        write_text(path.with_suffix(".json"), json.dumps(card, indent=1) + "\n")


def load_zoo(path: str | Path = BUNDLED) -> Zoo:
    """A zoo from a file; by default the small one that comes with the package.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it holds something else, or models that `Zoo` refuses.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"A zoo must be a file, but {str(path)!r} is none. Make one: optax-unf zoo make.")
    metadata, arrays = read_arrays(path)
    if metadata.get("format") != _FORMAT:
        raise ValueError(f"{path} must have the format {_FORMAT!r}, but has {metadata.get('format')!r}.")
    try:
        return _zoo(ZooConfig.from_dict(json.loads(metadata["config"])), arrays)
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _zoo(config: ZooConfig, arrays: Arrays) -> Zoo:
    weights = {name.removeprefix(WEIGHTS): x for name, x in arrays.items() if name.startswith(WEIGHTS)}
    params = nested({name: x.astype(np.float32) for name, x in weights.items()})
    return Zoo(config, params, {name: x for name, x in arrays.items() if not name.startswith(WEIGHTS)})


def _check_shapes(zoo: Zoo) -> None:
    init = jax.eval_shape(zoo.model.init, jax.random.key(0))
    wanted = {path: x.shape for path, x in leaves_by_path(init).items()}
    found = {path: np.shape(x) for path, x in leaves_by_path(zoo.params).items()}
    count = len(zoo.success_rate)
    for path in dict.fromkeys([*wanted, *found]):
        if path not in found or path not in wanted or found[path][1:] != wanted[path]:
            of_found = f"the shape {found[path][1:]}" if path in found else "no such tensor"
            of_wanted = f"the shape {wanted[path]}" if path in wanted else "no such tensor"
            raise ValueError(
                f"Models with {zoo.config.hidden} hidden units and {zoo.config.cell} cells must have {of_wanted} at "
                f"{show_path(path)}, but model 0 and those after it have {of_found}."
            )
        if found[path][0] != count:
            index = min(found[path][0], count)
            raise ValueError(
                f"Each of {count} success rates must have a model, but leaf {show_path(path)} has {found[path][0]}: "
                f"model {index} is not whole."
            )
