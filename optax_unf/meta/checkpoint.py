"""Checkpoints of a meta-training run: one file, replaced whole."""

import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from jaxtyping import PyTree


def save(path: Path, state: PyTree, record: dict[str, Any]) -> None:
    """Writes arrays and a JSON record to one safetensors file, under a temporary name that is then renamed.

    Args:
      path: the file.
      state: a pytree of arrays; PRNG keys are stored as their data.
      record: anything that JSON can hold.
    """
    arrays = {
        f"{index:05d}": np.asarray(jax.random.key_data(x) if _is_key(x) else x)
        for index, x in enumerate(jax.tree.leaves(state))
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(safetensors.numpy.save(arrays, {"record": json.dumps(record)}))
    temporary.replace(path)


def load_record(path: Path) -> dict[str, Any]:
    """The JSON record that `save` wrote.

    Raises:
      ValueError: the file is damaged or no checkpoint.
    """
    try:
        with safetensors.safe_open(path, "numpy") as file:
            return json.loads((file.metadata() or {})["record"])
    except (safetensors.SafetensorError, KeyError) as error:
        raise ValueError(f"{path} is not a checkpoint of a meta-training run: {error}.") from error


def load_state(path: Path, like: PyTree) -> PyTree:
    """The arrays that `save` wrote.

    Args:
      path: the file.
      like: a pytree of the same structure, shapes and dtypes.

    Raises:
      ValueError: the file holds a state of other structure.
    """
    arrays = safetensors.numpy.load_file(path)
    leaves, treedef = jax.tree.flatten(like)
    if len(arrays) != len(leaves):
        raise ValueError(f"{path} must hold {len(leaves)} arrays, but holds {len(arrays)}.")
    restored = []
    for (name, array), leaf in zip(sorted(arrays.items()), leaves, strict=True):
        x = jnp.asarray(array)
        x = jax.random.wrap_key_data(x) if _is_key(leaf) else x
        if x.shape != leaf.shape or x.dtype != leaf.dtype:
            raise ValueError(
                f"Array {name} of {path} must be {leaf.dtype}{leaf.shape}, but is {x.dtype}{x.shape}. It belongs to "
                f"another run: give a new output folder."
            )
        restored.append(x)
    return treedef.unflatten(restored)


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
