"""A spec that is inferred when an optimizer first sees its parameters."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import PyTree

from optax_unf.infer.infer_spec import infer_spec
from optax_unf.paths import leaves_by_path
from optax_unf.read_spec import make_spec
from optax_unf.spec import PermutationSpec


class Inferred:
    """Stands for a spec until the parameters are known: `optax_unf.unf(weights, spec=Inferred(loss, batch))`.

    It is inferred once for each weight space, with `io="permute"` and `noise="permute"` unless told otherwise: an
    optimizer gains from sharing what it learns between all inputs, classes and draws.

    Args:
      fn: a loss or apply function, as `infer_spec` takes it.
      *args: its arguments after the parameters; only shapes of arrays are kept.
      **modes: keyword arguments of `infer_spec`.

    Example:
      >>> import jax.numpy as jnp, optax_unf
      >>> def loss(params, x):
      ...     return jnp.sum(jnp.tanh(x @ params["w1"]) @ params["w2"])
      >>> params = {"w1": jnp.ones((3, 8)), "w2": jnp.ones((8, 2))}
      >>> tx = optax_unf.unf("mlp-fashion-mnist-deepsets", spec=optax_unf.Inferred(loss, jnp.ones((4, 3))))
      >>> updates, state = tx.update(params, tx.init(params), params)
    """

    def __init__(self, fn: Callable[..., Any], *args: Any, **modes: Any) -> None:
        self._fn = fn
        self._args = jax.tree.map(_shape_of, args)
        self._modes = {"io": "permute", "noise": "permute", **modes}
        self._known: dict[tuple[tuple[str, tuple[int, ...]], ...], PermutationSpec] = {}

    def of(self, params: PyTree) -> PermutationSpec:
        """The spec of these parameters.

        Raises:
          ValueError: `optax.masked` or `optax.partition` took leaves out of the parameters: the function needs all of
            them. Or see `infer_spec`.
          TypeError, NotImplementedError: see `infer_spec`.
        """
        if any(map(_is_masked, jax.tree.leaves(params, is_leaf=_is_masked))):
            raise ValueError(
                "A spec is inferred from all parameters, but optax.masked or optax.partition took some out. Infer it "
                "before: spec=infer_spec(fn, params, *args, io='permute'); it serves for the part as well."
            )
        space = tuple((path, np.shape(x)) for path, x in leaves_by_path(params).items())
        if space not in self._known:
            shapes = jax.tree.map(_shape_of, params)
            self._known[space] = infer_spec(self._fn, shapes, *self._args, **self._modes)
        return self._known[space]


def resolved(spec: PermutationSpec | Inferred | PyTree | None, params: PyTree) -> PermutationSpec:
    """The spec that a user means by any of the forms that functions accept: see `make_spec` and `Inferred`."""
    if isinstance(spec, Inferred):
        return spec.of(params)
    return spec if isinstance(spec, PermutationSpec) else make_spec(spec, params)


def _is_masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def _shape_of(x: Any) -> Any:
    return jax.ShapeDtypeStruct(x.shape, x.dtype) if hasattr(x, "shape") and hasattr(x, "dtype") else x
