"""Small meta-weights and parameters that tests of the optax surface share."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_unf import Architecture, InitialScalars, init_weights, make_spec, unf

HEADS = ("none", "deepsets", "tied", "full")
AXES = {"w": ("in", "out"), "b": ("out",), "scale": ()}


def make_params(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"w": (3, 2), "b": (2,), "scale": ()}
    return {path: jnp.asarray(rng.normal(size=shape), jnp.float32) for path, shape in shapes.items()}


SPEC = make_spec(AXES, make_params())


def make_weights(head, spec=SPEC, **config):
    kind, coefficients = ("unf", head) if head in ("tied", "full") else (head, "full")
    architecture = Architecture(head=kind, coefficients=coefficients, hidden_channels=4, hidden_layers=1, **config)
    return init_weights(architecture, spec, jax.random.key(7), InitialScalars(beta=0.5, warmup_time=10.0))


each_head = pytest.mark.parametrize("head", HEADS)
# For behaviours that do not depend on the head.
two_heads = pytest.mark.parametrize("head", ["none", "full"])
any_space = pytest.mark.parametrize("head", ["none", "deepsets", "tied"])


@functools.cache
def weights_of(head):
    # Whichever test asks first.
    with jax.enable_x64(False):
        return make_weights(head)


def make(head, **kwargs):
    return unf(weights_of(head), spec=SPEC, **kwargs)


def descend(tx, steps=3, params=None, grads=None):
    """Parameters and state after some steps with gradients that do not depend on the parameters."""
    params = make_params() if params is None else params

    @jax.jit
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for n in range(steps):
        params, state = step(params, state, make_params(n + 1) if grads is None else grads)
    return params, state


def close(a, b, tolerance=1e-5):
    chex.assert_trees_all_close(a, b, rtol=tolerance, atol=tolerance)
