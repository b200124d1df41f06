"""Meta-weights of one architecture and weight space as the start for another."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array

from optax_unf.nn.untie import untie
from optax_unf.optimizer.meta_weights import MetaWeights, init_weights
from optax_unf.optimizer.network import OptimizerConfig
from optax_unf.spec.permutation_spec import PermutationSpec


def transfer_weights(
    weights: MetaWeights,
    config: OptimizerConfig,
    spec: PermutationSpec,
    key: Array,
    *,
    alpha: float | None = None,
    learned: float = 1.0,
) -> MetaWeights:
    """Weights that begin where others ended: meta-training from them is shorter than from fresh ones.

    The trunk and the scalars are carried over, and so is the head where it can be: tied coefficients become full ones
    that compute the same. Otherwise the head is fresh, and so is beta, its weight. A warm-up that the weights lack
    begins as the architecture says.

    Args:
      weights: where to begin.
      config: the architecture wanted.
      spec: the weight space wanted.
      key: a PRNG key, for a fresh head.
      alpha: the step size to begin with; by default that of the weights. Beta then changes by the opposite factor, so
        that the learned part of the step stays: a smaller alpha is for networks whose gradients explode at times, which
        the nominal part follows and the learned one does not.
      learned: factor of the learned part of the step.

    Raises:
      ValueError: the trunks differ, the weights have a warm-up and the architecture none, alpha is not positive, or it
        is not given although the normalization, and with it the size of the nominal term, is another.
      TypeError: `spec` is no `PermutationSpec`.

    Example:
      >>> import jax
      >>> from optax_unf import OptimizerConfig, load_weights, make_spec
      >>> params = {"w": jax.numpy.ones((3, 2)), "b": jax.numpy.ones(3)}
      >>> spec = make_spec({"w": ("out", "in"), "b": ("out",)}, params)
      >>> tied = load_weights("mlp-fashion-mnist-tied")
      >>> transfer_weights(tied, OptimizerConfig(), spec, jax.random.key(0)).config.coefficients
      'full'
    """
    if alpha is not None and not alpha > 0:
        raise ValueError(f"alpha must be positive, but is {alpha}.")
    if alpha is None and config.scales_entries != weights.config.scales_entries:
        raise ValueError(
            f"The nominal term of weights with normalization={weights.config.normalization!r} has another size than "
            f"with {config.normalization!r}, so alpha must be given. By entry it has the size of a rate of Adam."
        )
    if weights.config.step_warmup and not config.step_warmup:
        raise ValueError(
            f"The weights have a warm-up of the step, but the architecture wanted has none. Give it step_warmup="
            f"{weights.config.step_warmup}: the weights' own time constant is carried over."
        )
    fresh = init_weights(config, spec, key)
    scalars = ("log_alpha", "logit_gamma_0", "log_step_warmup")
    theta = fresh.theta | {name: weights.theta[name] for name in scalars if name in weights.theta}
    if "network" in fresh.theta and "network" in weights.theta:
        old, new = ((c.hidden_channels, c.hidden_layers, c.pool) for c in (weights.config, config))
        if old != new:
            raise ValueError(
                f"The trunk must keep its hidden_channels, hidden_layers and pool, but the weights have {old}, and the "
                f"architecture wanted has {new}."
            )
        trunk = {name: kernel for name, kernel in weights.theta["network"].items() if name.startswith("trunk_")}
        theta["network"] = fresh.theta["network"] | trunk
        head = _head(weights, config, spec)
        if head is not None:
            theta["network"]["head"] = head
            theta["beta"] = weights.theta["beta"]
    if alpha is not None:
        if "beta" in theta:
            theta["beta"] = theta["beta"] * jnp.exp(theta["log_alpha"]) / alpha
        theta["log_alpha"] = jnp.log(jnp.float32(alpha))
    if "beta" in theta:
        theta["beta"] = theta["beta"] * learned
    return dataclasses.replace(fresh, theta=theta)


def _head(weights: MetaWeights, config: OptimizerConfig, spec: PermutationSpec) -> dict[str, Array] | None:
    old, head = weights.config, weights.theta["network"]["head"]
    if (old.head, old.coefficients) == ("unf", "tied") and (config.head, config.coefficients) == ("unf", "full"):
        return untie(head, spec)
    same = old.head == config.head and (old.head != "unf" or old.coefficients == config.coefficients)
    return head if same and weights.spec in (None, spec) else None
