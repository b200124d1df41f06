"""Meta-weights: the parameters of a learned optimizer."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from optax_unf._arguments import check_is_spec
from optax_unf.optimizer.architecture import Architecture, InitialScalars
from optax_unf.optimizer.network import Network
from optax_unf.optimizer.theta import Scalars, Theta
from optax_unf.spec.axes import Name
from optax_unf.spec.leaf import LeafSpec
from optax_unf.spec.paths import show_path
from optax_unf.spec.permutation_spec import PermutationSpec


@functools.partial(jax.tree_util.register_dataclass, data_fields=["theta"], meta_fields=["architecture", "spec"])
@dataclasses.dataclass(frozen=True)
class MetaWeights:
    """The meta-weights of a learned optimizer: a pytree whose leaves are those of `theta`.

    Attributes:
      theta: the numbers, all float32.
      architecture: of the learned optimizer.
      spec: the weight space that full coefficients belong to; `None` where the weights fit any.
    """

    theta: Theta
    architecture: Architecture
    spec: PermutationSpec | None

    @property
    def alpha(self) -> Float[Array, ""]:
        """The step size."""
        return self.theta.scalars.alpha

    @property
    def gamma_0(self) -> Float[Array, ""]:
        """The decay of the nominal momentum."""
        return self.theta.scalars.gamma_0


def init_weights(
    architecture: Architecture, spec: PermutationSpec, key: Array, scalars: InitialScalars | None = None
) -> MetaWeights:
    """Meta-weights before any meta-training.

    Args:
      architecture: of the learned optimizer.
      spec: the weight space. Tied coefficients take from it which roles there are, and nothing else.
      key: a PRNG key.
      scalars: those of Eq. 31; by default `InitialScalars()`.

    Raises:
      TypeError: `spec` is no `PermutationSpec`.
    """
    check_is_spec(spec, "The weight space")
    learns = architecture.head != "none"
    network = Network(architecture, spec).init(key) if learns else ()
    theta = Theta(_scalars(architecture, scalars or InitialScalars()), network)
    return MetaWeights(theta, architecture, spec if architecture.fits_one_space else None)


def _scalars(architecture: Architecture, initial: InitialScalars) -> Scalars:
    alpha = architecture.usual_alpha if initial.alpha is None else initial.alpha
    return Scalars(
        log_alpha=jnp.log(jnp.float32(alpha)),
        logit_gamma_0=jax.scipy.special.logit(jnp.float32(initial.gamma_0)),
        beta=None if architecture.head == "none" else jnp.float32(initial.beta),
        log_step_warmup=jnp.log(jnp.float32(initial.warmup_time)) if architecture.step_warmup else None,
    )


def check_fits(own: PermutationSpec | None, spec: PermutationSpec) -> None:
    """Raises ValueError, with the first leaf that differs, if weights of their `own` weight space do not fit this one.

    Names need not be equal, only which axes share one.
    """
    if own is None:
        return
    wanted, found = ({leaf.path: leaf for leaf in s.leaves} for s in (own, spec))
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
    """How the leaf is cut into parts, and those into factors."""
    return [(part.start, part.stop, part.shape) for part in leaf.parts]


def _describe(leaf: LeafSpec | None) -> str:
    if leaf is None:
        return "no such leaf"
    # Only of products and concatenations does the shape not say all sizes.
    sizes = "" if len(leaf.factors) == len(leaf.shape) else f" of sizes {leaf.factors}"
    return f"shape {leaf.shape} with axes {leaf.axes}{sizes}"
