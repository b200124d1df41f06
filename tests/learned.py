"""Small meta-weights and parameters that tests of the optax surface share."""

import jax
import jax.numpy as jnp
import numpy as np

from optax_unf import OptimizerConfig, init_weights, make_spec

HEADS = ("none", "deepsets", "tied", "full")
AXES = {"w": ("in", "out"), "b": ("out",), "scale": ()}


def make_params(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"w": (3, 2), "b": (2,), "scale": ()}
    return {path: jnp.asarray(rng.normal(size=shape), jnp.float32) for path, shape in shapes.items()}


SPEC = make_spec(AXES, make_params())


def make_weights(head, spec=SPEC):
    kind, coefficients = ("unf", head) if head in ("tied", "full") else (head, "full")
    config = OptimizerConfig(head=kind, coefficients=coefficients, hidden_channels=4, hidden_layers=1, beta=0.5)
    return init_weights(config, spec, jax.random.key(7))
