"""Meta-weights: the parameters of a learned optimizer, in memory and on disk."""

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from jax.extend.core import ClosedJaxpr, Var, jaxpr_as_fun
from jaxtyping import Array, Float, Int, PyTree

from optax_unf.axes import Axis, Concat, Fixed, Name
from optax_unf.features import ENTRY_CHANNELS, TIME_CHANNELS
from optax_unf.leaf import LeafSpec
from optax_unf.network import OptimizerConfig, UpdateNetwork
from optax_unf.paths import show_path
from optax_unf.replaced import replaced, write_text
from optax_unf.spec import PermutationSpec

_FORMAT = "optax_unf meta-weights 1"


@functools.partial(jax.tree_util.register_dataclass, data_fields=["theta"], meta_fields=["config", "spec"])
@dataclasses.dataclass(frozen=True)
class MetaWeights:
    """The meta-weights of a learned optimizer: a pytree whose leaves are those of `theta`.

    Attributes:
      theta: `{"log_alpha": (), "logit_gamma_0": (), "beta": (), "network": {...}}`, all float32; `beta` and
        `network` only where f is not zero, and `log_step_warmup: ()` only with a warm-up.
      config: the architecture.
      spec: the weight space that full coefficients belong to; `None` where the weights fit any.
    """

    theta: PyTree[Float[Array, "..."]]
    config: OptimizerConfig
    spec: PermutationSpec | None

    @property
    def alpha(self) -> Float[Array, ""]:
        """The step size."""
        return jnp.exp(self.theta["log_alpha"])

    @property
    def gamma_0(self) -> Float[Array, ""]:
        """The decay of the nominal momentum."""
        return jax.nn.sigmoid(self.theta["logit_gamma_0"])

    def warmup(self, count: Int[Array, ""]) -> Float[Array, ""]:
        """What the step after `count` others is multiplied by: 1 unless the architecture has a warm-up."""
        if not self.config.step_warmup:
            return jnp.float32(1.0)
        return -jnp.expm1(-(jnp.float32(1.0) + count) / jnp.exp(self.theta["log_step_warmup"]))


def init_weights(config: OptimizerConfig, spec: PermutationSpec, key: Array) -> MetaWeights:
    """Meta-weights before any meta-training.

    Args:
      config: the architecture.
      spec: the weight space. Tied coefficients take from it which roles there are, and nothing else.
      key: a PRNG key.

    Raises:
      TypeError: `spec` is no `PermutationSpec`.
    """
    if not isinstance(spec, PermutationSpec):
        raise TypeError(
            f"The weight space must be a PermutationSpec, but is of type {type(spec).__name__}. "
            f"make_spec(names, params), infer_spec and Inferred(...).of(params) make one."
        )
    theta: dict[str, PyTree] = {
        "log_alpha": jnp.log(jnp.float32(config.alpha)),
        "logit_gamma_0": jax.scipy.special.logit(jnp.float32(config.gamma_0)),
    }
    if config.step_warmup:
        theta["log_step_warmup"] = jnp.log(jnp.float32(config.step_warmup))
    if config.head != "none":
        features = [jax.ShapeDtypeStruct((ENTRY_CHANNELS, *leaf.shape), jnp.float32) for leaf in spec.leaves]
        time = jax.ShapeDtypeStruct((TIME_CHANNELS,), jnp.float32)
        variables = _from_key(UpdateNetwork(config, spec).init, key, features, time)
        theta |= {"beta": jnp.float32(config.beta), "network": variables.get("params", {})}
    return MetaWeights(theta, config, spec if config.fits_one_space else None)


def _from_key(init: Callable[..., PyTree], key: Array, *shapes: PyTree) -> PyTree:
    """`init(key, *arrays)`, where shapes of the arrays are enough: features of a large model would not fit into memory.

    Evaluated operation by operation, because those that draw numbers are shared; all in one program would be compiled
    for each weight space.
    """
    closed, result = jax.make_jaxpr(init, return_shape=True)(key, *shapes)
    needed, equations = set(closed.jaxpr.outvars), []
    for equation in reversed(closed.jaxpr.eqns):
        if needed.intersection(equation.outvars):
            needed.update(x for x in equation.invars if isinstance(x, Var))
            equations.insert(0, equation)
    part = closed.jaxpr.replace(eqns=equations, invars=closed.jaxpr.invars[:1])
    arrays = jaxpr_as_fun(ClosedJaxpr(part, closed.consts))(key)
    return jax.tree.unflatten(jax.tree.structure(result), arrays)


def check_fits(weights: MetaWeights, spec: PermutationSpec) -> None:
    """Raises ValueError, with the first leaf that differs, if the weights belong to another weight space.

    Names need not be equal, only which axes share one.
    """
    if weights.spec is None:
        return
    wanted, found = ({leaf.path: leaf for leaf in s.leaves} for s in (weights.spec, spec))
    paths = tuple(dict.fromkeys([*wanted, *found]))
    for differs in (_shapes_differ, _Renaming().differs):
        for path in paths:
            a, b = wanted.get(path), found.get(path)
            if a is None or b is None or differs(a, b):
                raise ValueError(
                    f"These meta-weights have full coefficients, which fit only the weight space they were made for, "
                    f"and this one differs at leaf {show_path(path)}: the weights want {_describe(a)}, the parameters "
                    f"have {_describe(b)}. Use weights with tied coefficients or a Deep Sets head, which fit any "
                    f"space, or meta-train for this one."
                )


def _shapes_differ(a: LeafSpec, b: LeafSpec) -> bool:
    return a.shape != b.shape


class _Renaming:
    """A one-to-one renaming of axes, found leaf by leaf."""

    def __init__(self) -> None:
        self._there: dict[Name | None, Name | None] = {None: None}
        self._back: dict[Name | None, Name | None] = {None: None}

    def differs(self, a: LeafSpec, b: LeafSpec) -> bool:
        return _cuts(a) != _cuts(b) or any(
            self._there.setdefault(x, y) != y or self._back.setdefault(y, x) != x
            for (x, _), (y, _) in zip(a.factors, b.factors, strict=True)
        )


def _cuts(leaf: LeafSpec) -> list[tuple[tuple[int, ...], ...]]:
    """How the leaf is cut into blocks, and those into factors."""
    return [(block.start, block.stop, block.shape) for block in leaf.blocks]


def _describe(leaf: LeafSpec | None) -> str:
    if leaf is None:
        return "no such leaf"
    # Only of products and concatenations does the shape not say all sizes.
    sizes = "" if len(leaf.factors) == len(leaf.shape) else f" of sizes {leaf.factors}"
    return f"shape {leaf.shape} with axes {leaf.axes}{sizes}"


def list_pretrained() -> tuple[str, ...]:
    """Names of the meta-weights that come with the package.

    Example:
      >>> "mlp-fashion-mnist-unf" in list_pretrained()
      True
    """
    return tuple(sorted(path.stem for path in _pretrained_folder().glob("*.safetensors")))


def load_weights(name_or_path: str | Path) -> MetaWeights:
    """Meta-weights from the package or from a file.

    Args:
      name_or_path: one of `list_pretrained()`, or the path of a file that `save_weights` wrote.

    Raises:
      FileNotFoundError: there is neither such a name nor such a file.
      TypeError: it is neither a name nor a path.
      ValueError: the file is damaged, or no file of meta-weights. Nothing in it is ever executed.

    Example:
      >>> load_weights("mlp-fashion-mnist-sgdm").config.head
      'none'
    """
    path = _resolve(name_or_path)
    config, spec, arrays = _read(path, path.stat().st_mtime_ns)
    return MetaWeights(jax.tree.map(jnp.asarray, _nested(arrays)), config, spec)


# An injected hyperparameter makes the optimizer anew at each step, and with it asks for the weights.
@functools.lru_cache(maxsize=8)
def _read(path: Path, modified: int) -> tuple[OptimizerConfig, PermutationSpec | None, dict[str, np.ndarray]]:
    del modified  # only part of the cache's key
    try:
        with safetensors.safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} must be a safetensors file, but is damaged or something else: {error}.") from error
    if metadata.get("format") != _FORMAT:
        raise ValueError(
            f"{path} must hold meta-weights in the format {_FORMAT!r}, but its metadata has the format "
            f"{metadata.get('format')!r}. Only files that optax_unf.save_weights wrote can be loaded."
        )
    config = OptimizerConfig(**json.loads(metadata["config"]))
    spec = _spec_from_json(metadata["spec"])
    if spec is not None:
        weights = MetaWeights(_nested(arrays), config, spec)
        _check_arrays(path, weights, jax.eval_shape(lambda key: init_weights(config, spec, key), jax.random.key(0)))
    return config, spec, arrays


def _nested(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    theta: dict[str, Any] = {}
    for name, array in arrays.items():
        *folders, last = name.split("/")
        node = theta
        for folder in folders:
            node = node.setdefault(folder, {})
        node[last] = array
    return theta


def save_weights(path: str | Path, weights: MetaWeights, *, card: Mapping[str, Any] | None = None) -> None:
    """Writes meta-weights to a safetensors file.

    Args:
      path: the file, by custom `<task>-<architecture>.safetensors`. It is written under a temporary name and renamed.
      weights: the meta-weights.
      card: what they are and how they were made; written beside the file as `<name>.json`.
    """
    path = Path(path)
    card_text = None if card is None else json.dumps(card, indent=1) + "\n"
    metadata = {
        "format": _FORMAT,
        "config": json.dumps(dataclasses.asdict(weights.config)),
        "spec": json.dumps(weights.spec and [dataclasses.asdict(leaf) for leaf in weights.spec.leaves]),
    }
    arrays = {
        jax.tree_util.keystr(keys, simple=True, separator="/"): np.asarray(x)
        for keys, x in jax.tree_util.tree_flatten_with_path(weights.theta)[0]
    }
    with replaced(path) as temporary:
        temporary.write_bytes(safetensors.numpy.save(arrays, metadata))
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
    return json.loads(_resolve(name_or_path).with_suffix(".json").read_text(encoding="utf-8"))


def _resolve(name_or_path: str | Path) -> Path:
    if not isinstance(name_or_path, str | os.PathLike):
        raise TypeError(
            f"Meta-weights must be MetaWeights, a path, or one of {', '.join(list_pretrained())}, but are of type "
            f"{type(name_or_path).__name__}. init_weights and load_weights make MetaWeights."
        )
    if str(name_or_path) in list_pretrained():
        return _pretrained_folder() / f"{name_or_path}.safetensors"
    path = Path(name_or_path)
    if not path.is_file():
        raise FileNotFoundError(
            f"Meta-weights must be a file or one of {', '.join(list_pretrained())}, but {str(name_or_path)!r} is not."
        )
    return path


def _pretrained_folder() -> Path:
    # In a wheel the folder is inside the package; in a checkout it is beside it.
    inside = Path(__file__).parent / "_pretrained"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "pretrained"


def _spec_from_json(text: str) -> PermutationSpec | None:
    leaves = json.loads(text)
    if leaves is None:
        return None
    return PermutationSpec(
        tuple(
            LeafSpec(
                leaf["path"],
                tuple(leaf["shape"]),
                tuple(map(_axis_from_json, leaf["axes"])),
                tuple((name, size) for name, size in leaf["factors"]),
            )
            for leaf in leaves
        )
    )


def _axis_from_json(axis: Any) -> Axis:
    # Dataclasses are objects of their fields, as `dataclasses.asdict` has them.
    if isinstance(axis, dict):
        return Fixed(axis["size"]) if "size" in axis else Concat(*map(_axis_from_json, axis["parts"]))  # type: ignore[arg-type]
    return tuple(map(_axis_from_json, axis)) if isinstance(axis, list) else axis  # type: ignore[return-value]


def _check_arrays(path: Path, weights: MetaWeights, init: MetaWeights) -> None:
    found, wanted = (
        {jax.tree_util.keystr(keys): x.shape for keys, x in jax.tree_util.tree_flatten_with_path(w.theta)[0]}
        for w in (weights, init)
    )
    for name in dict.fromkeys([*wanted, *found]):
        if found.get(name) != wanted.get(name):
            raise ValueError(
                f"{path} must hold theta{name} of shape {wanted.get(name)}, as its architecture says, but has "
                f"{found.get(name)}."
            )
