"""A spec that is inferred when an optimizer first sees its parameters."""

import contextlib
from collections.abc import Callable
from typing import Any, TypeAlias, get_args

import jax
import numpy as np
import optax
from jax.sharding import AxisType
from jaxtyping import PyTree

from optax_unf.infer.infer_spec import Mode, infer_spec
from optax_unf.spec.make_spec import make_spec
from optax_unf.spec.pairs import joined, of_pairs
from optax_unf.spec.paths import leaves_by_path
from optax_unf.spec.permutation_spec import PermutationSpec
from optax_unf.spec.restrict import restrict


class Inferred:
    """Stands for a spec until the parameters are known: `optax_unf.unf(weights, spec=Inferred(loss, batch))`.

    It is a function from parameters to their spec, inferred once for each weight space, with `io="permute"` and
    `noise="permute"` unless told otherwise: an optimizer gains from sharing what it learns between all inputs, classes
    and draws.

    Args:
      fn: a loss or apply function, as `infer_spec` takes it.
      *args: its arguments after the parameters; of arrays only types are kept: shape, dtype, explicit sharding.
      io: see `infer_spec`, as for the others.
      spatial: see there.
      noise: see there.
      strict: see there.

    Raises:
      TypeError: `fn` is no function.
      ValueError: a mode is unknown.

    Example:
      >>> import jax.numpy as jnp, optax_unf
      >>> def loss(params, x):
      ...     return jnp.sum(jnp.tanh(x @ params["w1"]) @ params["w2"])
      >>> params = {"w1": jnp.ones((3, 8)), "w2": jnp.ones((8, 2))}
      >>> tx = optax_unf.unf("mlp-fashion-mnist-deepsets", spec=optax_unf.Inferred(loss, jnp.ones((4, 3))))
      >>> updates, state = tx.update(params, tx.init(params), params)
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        *args: Any,
        io: Mode = "permute",
        spatial: Mode = "fixed",
        noise: Mode = "permute",
        strict: bool = False,
    ) -> None:
        if not callable(fn):
            raise TypeError(
                f"Inferred needs a function of the parameters, and then its other arguments, but got a "
                f"{type(fn).__name__} first. Write Inferred(loss, batch)."
            )
        for name, mode in {"io": io, "spatial": spatial, "noise": noise}.items():
            if mode not in get_args(Mode):
                raise ValueError(f"{name} must be 'fixed' or 'permute', but is {mode!r}.")
        self._fn = fn
        self._args = jax.tree.map(_type_of, args)
        self._modes: dict[str, Any] = {"io": io, "spatial": spatial, "noise": noise, "strict": strict}
        self._known: dict[tuple[tuple[str, tuple[int, ...]], ...], PermutationSpec] = {}

    def __repr__(self) -> str:
        name = getattr(self._fn, "__qualname__", type(self._fn).__name__)
        modes = ", ".join(f"{mode}={value!r}" for mode, value in self._modes.items())
        return f"Inferred({name}, {modes})"

    def __call__(self, params: PyTree) -> PermutationSpec:
        """See `of`."""
        return self.of(params)

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
            types = jax.tree.map(_type_of, joined(params))
            self._known[space] = of_pairs(infer_spec(self._fn, types, *self._args, **self._modes), params)
        return self._known[space]


Spec: TypeAlias = PermutationSpec | Callable[[PyTree], Any] | PyTree | None
"""What functions take for a spec: see `make_spec` and `Inferred`. With `None`, every axis has a name of its own."""


def resolved(spec: Spec, params: PyTree) -> PermutationSpec:
    """The spec that a user means by any of the forms that functions accept: see `make_spec` and `Inferred`."""
    spec = _called(spec, params)
    if isinstance(spec, PermutationSpec):
        return of_pairs(spec, params)
    model = joined(params)
    if spec is None or model is params:
        return make_spec(spec, params)
    try:
        return of_pairs(make_spec(spec, model), params)
    except (TypeError, ValueError):
        # Names of the halves, for each pair, are as good; the error is about the model.
        with contextlib.suppress(TypeError, ValueError):
            return make_spec(spec, params)
        raise


def resolved_for_part(spec: Spec, params: PyTree) -> PermutationSpec:
    """As `resolved`, where the parameters may be a part of the model that the spec is of."""
    return resolved(restrict(_called(spec, params), params), params)


def _called(spec: Spec, params: PyTree) -> Any:
    """What a function of the parameters, such as `Inferred`, returns; anything else as it is."""
    return spec(params) if callable(spec) else spec


def _is_masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def _type_of(x: Any) -> Any:
    """What tracing has to know of an array; anything else is passed as it is."""
    if isinstance(x, jax.ShapeDtypeStruct) or not (hasattr(x, "shape") and hasattr(x, "dtype")):
        return x
    if not isinstance(x, jax.Array):
        return jax.ShapeDtypeStruct(x.shape, x.dtype)
    known = jax.typeof(x)
    explicit = AxisType.Explicit in known.sharding.mesh.axis_types
    sharding = known.sharding if explicit else None
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding, weak_type=known.weak_type)
