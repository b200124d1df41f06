"""Safetensors files: arrays by path, and metadata. Nothing in them is ever executed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from optax_unf._files import replaced

# What safetensors gives back as numpy arrays, of all that it writes.
_DTYPES = (
    *("float64", "float32", "float16", "bfloat16", "complex64", "bool"),
    *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8"),
)


def write_arrays(path: str | Path, arrays: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    """Writes a file whole.

    Raises:
      TypeError: an array has a type that cannot be read back.
    """
    writable = {name: _writable(name, x) for name, x in arrays.items()}
    with replaced(path) as temporary:
        temporary.write_bytes(safetensors.numpy.save(writable, dict(metadata)))


def read_arrays(path: str | Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """The metadata and the arrays of a file.

    Raises:
      ValueError: the file is damaged, or something else.
    """
    try:
        with safetensors.safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} must be a safetensors file, but is damaged or something else: {error}.") from error
    return metadata, arrays


def nested(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Dictionaries of dictionaries, from arrays by path.

    Example:
      >>> nested({"a/b": 1, "c": 2})
      {'a': {'b': 1}, 'c': 2}
    """
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        *folders, last = name.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[last] = array
    return tree


def _writable(name: str, x: Any) -> np.ndarray:
    """The array as safetensors has to get it."""
    # It writes memory as it lies, whatever the strides.
    array = np.asarray(x, order="C")
    if array.dtype.newbyteorder("=").name not in _DTYPES:
        raise TypeError(
            f"Arrays must have one of the types {', '.join(_DTYPES)} to be saved, but {name} is {array.dtype}. "
            f"Convert it to float32."
        )
    return array
