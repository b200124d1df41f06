"""Small meta-weights and parameters that tests of the optax surface share."""

import jax
import jax.numpy as jnp

from optax_unf import OptimizerConfig, init_weights, make_spec

HEADS = ("none", "deepsets", "tied", "full")
AXES = {"w": ("in", "out"), "b": ("out",), "scale": ()}


def make_params(seed=0, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(seed), 3)
    shapes = {"w": (3, 2), "b": (2,), "scale": ()}
    return {path: jax.random.normal(k, shape, dtype) for k, (path, shape) in zip(keys, shapes.items(), strict=True)}


SPEC = make_spec(AXES, make_params())


def make_weights(head, spec=SPEC):
    kind, coefficients = ("unf", head) if head in ("tied", "full") else (head, "full")
    config = OptimizerConfig(head=kind, coefficients=coefficients, hidden_channels=4, hidden_layers=1, beta=0.5)
    return init_weights(config, spec, jax.random.key(7))


def leaf_types(tree):
    """Shape, dtype and weak type of every leaf, and the structure."""
    return jax.tree.map(lambda x: (x.shape, str(x.dtype), x.weak_type), jax.eval_shape(lambda: tree))
