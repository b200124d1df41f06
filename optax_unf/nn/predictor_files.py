"""Trained predictors on disk: safetensors files, which can hold nothing that is executed."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from optax_unf._safetensors import read_arrays, write_arrays
from optax_unf.nn.predictor import InvariantPredictor
from optax_unf.spec.as_json import spec_from_json, spec_to_json
from optax_unf.spec.paths import leaves_by_path

_FORMAT = "optax_unf predictor 1"
# Of every flax module, but no setting.
_NOT_SETTINGS = ("spec", "parent", "name")


def save_predictor(path: str | Path, predictor: InvariantPredictor, variables: PyTree) -> None:
    """Writes a predictor and its variables, the normalization among them.

    Args:
      path: the file, by custom `*.safetensors`. It is written under a temporary name and renamed.
      predictor: the module.
      variables: what `init` and training made.
    """
    settings = {
        field.name: getattr(predictor, field.name)
        for field in dataclasses.fields(predictor)
        if field.name not in _NOT_SETTINGS
    }
    metadata = {"format": _FORMAT, "settings": json.dumps(settings), "spec": spec_to_json(predictor.spec)}
    write_arrays(path, leaves_by_path(variables), metadata)


def load_predictor(path: str | Path) -> tuple[InvariantPredictor, PyTree]:
    """A predictor and its variables.

    Args:
      path: a file that `save_predictor` wrote.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is damaged, or holds something else.

    Example:
      >>> import tempfile
      >>> from optax_unf import make_spec
      >>> spec = make_spec({"w": ("hidden",)}, {"w": jnp.ones(3)})
      >>> predictor = InvariantPredictor(spec, channels=2, width=4)
      >>> variables = predictor.init(jax.random.key(0), {"w": jnp.ones((5, 3))})
      >>> path = Path(tempfile.mkdtemp(), "predictor.safetensors")
      >>> save_predictor(path, predictor, variables)
      >>> load_predictor(path)[0] == predictor
      True
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"A predictor must be a file, but {str(path)!r} is none.")
    metadata, arrays = read_arrays(path)
    if metadata.get("format") != _FORMAT:
        raise ValueError(
            f"{path} must hold a predictor in the format {_FORMAT!r}, but its format is {metadata.get('format')!r}. "
            f"Only files that optax_unf.nn.save_predictor wrote can be loaded."
        )
    try:
        spec = spec_from_json(metadata["spec"])
        predictor = InvariantPredictor(spec, **json.loads(metadata["settings"]))  # type: ignore[arg-type]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} must describe a predictor as optax_unf.nn.save_predictor does: {error}") from error
    return predictor, _variables(path, predictor, arrays)


def _variables(path: str | Path, predictor: InvariantPredictor, arrays: dict[str, np.ndarray]) -> PyTree:
    """The arrays as variables, checked against those that the module makes."""
    one = {leaf.path: jax.ShapeDtypeStruct((1, *leaf.shape), jnp.float32) for leaf in predictor.spec.leaves}
    wanted = jax.eval_shape(predictor.init, jax.random.key(0), one)
    shapes = {name: x.shape for name, x in leaves_by_path(wanted).items()}
    found = {name: x.shape for name, x in arrays.items()}
    for name in dict.fromkeys([*shapes, *found]):
        if shapes.get(name) != found.get(name):
            raise ValueError(
                f"{path} must hold {name!r} of shape {shapes.get(name, 'none')}, as its settings say, but it has "
                f"{found.get(name, 'none')}."
            )
    leaves = [jnp.asarray(arrays[name]) for name in leaves_by_path(wanted)]
    return jax.tree.unflatten(jax.tree.structure(wanted), leaves)
