"""Many trees of parameters as one, with an axis of models first."""

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import ArrayLike, Float, PyTree

from optax_unf.spec.paths import leaves_by_path, show_path
from optax_unf.spec.permutation_spec import PermutationSpec

Stacked = PyTree[Float[ArrayLike, "models ..."]]


def stack_models(models: Sequence[PyTree[Float[ArrayLike, "..."]]]) -> Stacked:
    """The parameters of a population of networks, leaf by leaf in one array.

    Args:
      models: parameter trees of one structure.

    Returns:
      A tree of numpy arrays, `[models, *shape]`.

    Raises:
      ValueError: there are no models; or one lacks a tensor, or has another shape than the first, or weights that are
        not finite. The message has its index.

    Example:
      >>> import jax.numpy as jnp
      >>> stacked = stack_models([{"w": jnp.ones((3, 2))}, {"w": jnp.zeros((3, 2))}])
      >>> stacked["w"].shape
      (2, 3, 2)
    """
    if not models:
        raise ValueError("A population must have at least one model, but has none.")
    first = {path: np.shape(x) for path, x in leaves_by_path(models[0]).items()}
    for index, model in enumerate(models):
        found = {path: np.shape(x) for path, x in leaves_by_path(model).items()}
        for path in dict.fromkeys([*first, *found]):
            if first.get(path) != found.get(path):
                raise ValueError(
                    f"All models must have the tensors of the first, but leaf {show_path(path)} {_shown(first, path)} "
                    f"there and {_shown(found, path)} in model {index}. Leave the model out, or make a population of "
                    f"its own for it."
                )
    stacked = jax.tree.map(lambda *xs: np.stack([np.asarray(x) for x in xs]), models[0], *models[1:])
    check_finite(stacked)
    return stacked


def check_finite(stacked: Stacked) -> None:
    """Refuses weights that are not finite.

    Raises:
      ValueError: with the index of the model.
    """
    for path, x in leaves_by_path(stacked).items():
        bad = ~np.isfinite(np.asarray(x)).reshape(len(x), -1).all(1)
        if bad.any():
            raise ValueError(
                f"All weights must be finite, but leaf {show_path(path)} of model {int(np.argmax(bad))} has NaN or "
                f"infinite ones, as have {int(bad.sum()) - 1} other models. Leave out models that diverged."
            )


def flat_stacked(stacked: Stacked, spec: PermutationSpec) -> list[ArrayLike]:
    """The leaves in the order of the spec, checked to have its shapes behind one axis of models.

    Raises:
      ValueError: they have not, or other leaves.
    """
    leaves = spec.flatten(stacked, "models")
    models = np.shape(leaves[0])[:1] if leaves else ()
    for leaf, x in zip(spec.leaves, leaves, strict=True):
        shape = np.shape(x)
        if not models or shape != (*models, *leaf.shape):
            raise ValueError(
                f"The models' leaf {show_path(leaf.path)} must have shape {('models', *leaf.shape)}, with as many "
                f"models as the other leaves, but has {shape}. Stack models by optax_unf.nn.stack_models; it takes a "
                f"single one, too: stack_models([params])."
            )
    return leaves


def _shown(shapes: dict[str, tuple[int, ...]], path: str) -> str:
    return f"has shape {shapes[path]}" if path in shapes else "is missing"
