"""Meta-weights of one architecture and weight space as the start for another."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array

from optax_unf.equivariant.untie import untie
from optax_unf.optimizer.architecture import Architecture
from optax_unf.optimizer.meta_weights import MetaWeights, init_weights
from optax_unf.optimizer.theta import Layer, Theta
from optax_unf.spec.permutation_spec import PermutationSpec

# What the shapes of the hidden layers depend on.
_TRUNK = ("hidden_channels", "hidden_layers", "equivariant_layers", "pool")


def transfer_weights(
    weights: MetaWeights,
    architecture: Architecture,
    spec: PermutationSpec,
    key: Array,
    *,
    alpha: float | None = None,
    learned: float = 1.0,
) -> MetaWeights:
    """Weights that begin where others ended: meta-training from them is shorter than from fresh ones.

    The trunk and the scalars are carried over, and so is the head where it can be: tied coefficients become full ones
    that compute the same. Otherwise the head is fresh, and so is beta, its weight. A warm-up that the weights lack
    begins at its usual size.

    Args:
      weights: where to begin.
      architecture: the architecture wanted.
      spec: the weight space wanted.
      key: a PRNG key, for a fresh head.
      alpha: the step size to begin with; by default that of the weights. Beta then changes by the opposite factor, so
        that the learned part of the step stays: a smaller alpha is for networks whose gradients explode at times, which
        the nominal part follows and the learned one does not.
      learned: factor of the learned part of the step.

    Raises:
      ValueError: the trunks differ, the weights have a warm-up and the architecture none, alpha is not positive, or it
        is not given although the size of the nominal term is another.
      TypeError: `spec` is no `PermutationSpec`.

    Example:
      >>> import jax
      >>> from optax_unf import Architecture, load_weights, make_spec
      >>> params = {"w": jax.numpy.ones((3, 2)), "b": jax.numpy.ones(3)}
      >>> spec = make_spec({"w": ("out", "in"), "b": ("out",)}, params)
      >>> tied = load_weights("mlp-fashion-mnist-tied")
      >>> transfer_weights(tied, Architecture(), spec, jax.random.key(0)).architecture.coefficients
      'full'
    """
    if alpha is not None and not alpha > 0:
        raise ValueError(f"alpha must be positive, but is {alpha}.")
    for name, size in (
        ("preconditioner", "Behind it the step has the size of a rate of Adam"),
        ("nominal", "Beside a term of its own it has the size of a rate of Adam"),
        ("step", "Beside an estimated distance it is about 1"),
    ):
        old, new = getattr(weights.architecture, name), getattr(architecture, name)
        if alpha is None and old != new:
            raise ValueError(
                f"The step of weights with {name}={old!r} has another size than with {new!r}, so alpha must be given. "
                f"{size}."
            )
    if weights.architecture.step_warmup and not architecture.step_warmup:
        raise ValueError(
            "The weights have a warm-up of the step, but the architecture wanted has none. Give it step_warmup=True: "
            "the weights' own time constant is carried over."
        )
    fresh = init_weights(architecture, spec, key)
    old, new = weights.theta, fresh.theta
    scalars, network = new.scalars._replace(**_carried(old)), new.network
    if network and old.network:
        trunks = [tuple(getattr(c, name) for name in _TRUNK) for c in (weights.architecture, architecture)]
        if trunks[0] != trunks[1]:
            raise ValueError(
                f"The trunk must keep its {', '.join(_TRUNK)}, but the weights have {trunks[0]}, and the architecture "
                f"wanted has {trunks[1]}."
            )
        *trunk, head = old.network
        for number in architecture.equivariant_layers:
            if (layer := _fitted(trunk[number], weights, architecture, spec)) is None:
                raise ValueError(
                    "The weights' equivariant layers fit their own head, coefficients and weight space only, but "
                    "others are wanted."
                )
            trunk[number] = layer
        head = _fitted(head, weights, architecture, spec)
        network = (*trunk, network[-1] if head is None else head)
        if head is not None:
            scalars = scalars._replace(beta=old.scalars.beta)
    if scalars.beta is not None:
        rescaled = 1.0 if alpha is None else scalars.alpha / alpha
        scalars = scalars._replace(beta=scalars.beta * rescaled * learned)
    if alpha is not None:
        scalars = scalars._replace(log_alpha=jnp.log(jnp.float32(alpha)))
    return dataclasses.replace(fresh, theta=Theta(scalars, network))


def carries_head(weights: MetaWeights, architecture: Architecture, spec: PermutationSpec) -> bool:
    """Whether `transfer_weights` keeps the head, or there is none to keep or none wanted."""
    if not weights.theta.network or architecture.head == "none":
        return True
    return _fitted(weights.theta.network[-1], weights, architecture, spec) is not None


def _carried(theta: Theta) -> dict[str, Array]:
    """The scalars that do not depend on the network."""
    return {name: x for name, x in theta.scalars._asdict().items() if x is not None and name != "beta"}


def _fitted(layer: Layer, weights: MetaWeights, architecture: Architecture, spec: PermutationSpec) -> Layer | None:
    """A layer of the head's kind for another head and weight space; `None` if it does not fit."""
    old = weights.architecture
    if (old.head, old.coefficients) == ("unf", "tied") and (architecture.head, architecture.coefficients) == (
        "unf",
        "full",
    ):
        return untie(layer, spec)
    same = old.head == architecture.head and (old.head != "unf" or old.coefficients == architecture.coefficients)
    return layer if same and weights.spec in (None, spec) else None
