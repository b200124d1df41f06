"""Meta-weights on disk: safetensors files, with a card of JSON beside each."""

import dataclasses
import functools
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optax_unf._files import write_text
from optax_unf._imported import did_you_mean
from optax_unf._safetensors import read_arrays, write_arrays
from optax_unf._settings import settings_from_json
from optax_unf.optimizer.architecture import Architecture
from optax_unf.optimizer.meta_weights import MetaWeights, init_weights
from optax_unf.optimizer.theta import from_arrays, to_arrays
from optax_unf.spec.as_json import spec_from_json, spec_to_json
from optax_unf.spec.make_spec import make_spec
from optax_unf.spec.permutation_spec import PermutationSpec

_FORMAT = "optax_unf meta-weights 1"
# Where there is a matrix for each role that leaves of the weight space have.
_BY_ROLE = re.compile(r"network/(head|trunk_\d+)/(all|own) ")


def pretrained_names() -> tuple[str, ...]:
    """Names of the meta-weights that come with the package."""
    return tuple(sorted(path.stem for path in _pretrained_folder().glob("*.safetensors")))


def load_weights(name_or_path: str | Path) -> MetaWeights:
    """Meta-weights from the package or from a file.

    Args:
      name_or_path: a name of `list_pretrained()`, the path of a file that `save_weights` wrote, or the folder of a
        meta-training run.

    Raises:
      FileNotFoundError: there is neither such a name nor such a file.
      TypeError: it is neither a name nor a path.
      ValueError: the file is damaged, or no file of meta-weights. Nothing in it is ever executed.

    Example:
      >>> load_weights("mlp-fashion-mnist-sgdm").architecture.head
      'none'
    """
    path = _resolve(name_or_path)
    architecture, spec, arrays = _read(path, path.stat().st_mtime_ns)
    return MetaWeights(from_arrays(jax.tree.map(jnp.asarray, arrays)), architecture, spec)


# An injected hyperparameter makes the optimizer anew at each step, and with it asks for the weights.
@functools.lru_cache(maxsize=8)
def _read(path: Path, modified: int) -> tuple[Architecture, PermutationSpec | None, dict[str, np.ndarray]]:
    del modified  # only part of the cache's key
    metadata, arrays = read_arrays(path)
    if metadata.get("format") != _FORMAT:
        raise ValueError(
            f"{path} must hold meta-weights in the format {_FORMAT!r}, but its metadata has the format "
            f"{metadata.get('format')!r}. Only files that optax_unf.save_weights wrote can be loaded."
        )
    try:
        architecture, spec = _architecture_from_json(metadata["architecture"]), spec_from_json(metadata["spec"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} must describe an architecture and a weight space as optax_unf.save_weights does, but does not: "
            f"{error}"
        ) from error
    _check_arrays(path, architecture, spec, arrays)
    return architecture, spec, arrays


def save_weights(path: str | Path, weights: MetaWeights, *, card: Mapping[str, Any] | None = None) -> None:
    """Writes meta-weights to a safetensors file.

    Args:
      path: the file, by custom `<task>-<architecture>.safetensors`. It is written under a temporary name and renamed.
      weights: the meta-weights.
      card: what they are and how they were made; written beside the file as `<name>.json`.

    Raises:
      TypeError: an array has a type that cannot be read back, or the card is no JSON.
    """
    path = Path(path)
    card_text = None if card is None else json.dumps(card, indent=1) + "\n"
    metadata = {
        "format": _FORMAT,
        "architecture": json.dumps(dataclasses.asdict(weights.architecture)),
        "spec": spec_to_json(weights.spec),
    }
    write_arrays(path, to_arrays(weights.theta), metadata)
    if card_text is not None:
        write_text(path.with_suffix(".json"), card_text)


def load_card(name_or_path: str | Path) -> dict[str, Any]:
    """The card of meta-weights: task, settings, evaluation curve, and the command that makes them again.

    Raises:
      FileNotFoundError: there are no such weights, or they have no card.

    Example:
      >>> load_card("mlp-fashion-mnist-sgdm")["task"]
      'mlp-fashion-mnist'
    """
    card = _resolve(name_or_path).with_suffix(".json")
    if not card.is_file():
        raise FileNotFoundError(
            f"The card of {name_or_path} must be {card}, but there is none: save_weights writes one only where it is "
            f"given a card."
        )
    return json.loads(card.read_text(encoding="utf-8"))


def _resolve(name_or_path: str | Path) -> Path:
    if not isinstance(name_or_path, str | os.PathLike):
        raise TypeError(
            f"Meta-weights must be MetaWeights, a name or a path, but are of type {type(name_or_path).__name__}. A "
            f"learning rate is not needed: unf(total_steps=...) finds its step size, and factor=0.5 would halve it. "
            f"init_weights and load_weights make MetaWeights; names are {', '.join(pretrained_names())}."
        )
    if str(name_or_path) in pretrained_names():
        return _pretrained_folder() / f"{name_or_path}.safetensors"
    path = Path(name_or_path)
    if (path / "weights.safetensors").is_file():
        return path / "weights.safetensors"
    if not path.is_file():
        raise FileNotFoundError(
            f"Meta-weights must be a file or one of {', '.join(pretrained_names())}, but {str(name_or_path)!r} is not."
            f"{did_you_mean(str(name_or_path), pretrained_names())}"
        )
    return path


def _pretrained_folder() -> Path:
    # In a wheel the folder is inside the package; in a checkout it is beside it.
    package = Path(__file__).parents[1]
    inside = package / "_pretrained"
    return inside if inside.is_dir() else package.parent / "pretrained"


def _architecture_from_json(text: str) -> Architecture:
    try:
        return settings_from_json(Architecture, json.loads(text), "an architecture")
    except ValueError as error:
        raise ValueError(f"{error} If a later version of optax_unf wrote the file, install that.") from error


def _check_arrays(
    path: Path, architecture: Architecture, spec: PermutationSpec | None, arrays: Mapping[str, np.ndarray]
) -> None:
    if spec is None and architecture.fits_one_space:
        raise ValueError(
            f"{path} must hold a weight space, since weights with head={architecture.head!r} and coefficients="
            f"{architecture.coefficients!r} fit only one, but holds none."
        )
    # Weights for any space have arrays that do not depend on it, except for matrices of tied coefficients.
    space = make_spec((), jnp.zeros(())) if spec is None else spec
    init = jax.eval_shape(lambda key: init_weights(architecture, space, key), jax.random.key(0))
    wanted = {name: x.shape for name, x in to_arrays(init.theta).items()}
    if spec is None and architecture.head == "unf":
        wanted = {name: shape for name, shape in wanted.items() if not _BY_ROLE.match(name)}
        for name in arrays:
            if (by_role := _BY_ROLE.match(name)) and (beside := wanted.get(f"network/{by_role[1]}/mean")):
                wanted[name] = beside

    found = {name: x.shape for name, x in arrays.items()}
    for name in dict.fromkeys([*wanted, *found]):
        # numpy makes arrays of one number from scalars, as `np.asfortranarray` does.
        if (found.get(name) or (1,)) != (wanted.get(name) or (1,)) or (name in found) != (name in wanted):
            raise ValueError(
                f"{path} must hold {_array(name, wanted)}, as its architecture says, but holds {_array(name, found)}."
            )


def _array(name: str, shapes: Mapping[str, tuple[int, ...]]) -> str:
    return f"theta {name!r} of shape {shapes[name]}" if name in shapes else f"no theta {name!r}"
