"""Parameters in units of their initial size."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_unf import Concat, in_units, scale_by_distance, scale_by_orthogonal

PARAMS = {
    "w": jnp.array([[3.0, -4.0], [0.0, 0.0], [0.0, 0.0]]),
    "scale": jnp.ones(5),
    "bias": jnp.zeros((2, 2)),
    "zero": jnp.zeros((2, 3)),
}
TYPICAL = (25 / 12) ** 0.5
UNITS = {"w": (25 / 6) ** 0.5, "scale": 2 * TYPICAL, "bias": 2 * TYPICAL, "zero": TYPICAL}


def test_steps_are_those_of_scaled_parameters():
    grads = jax.tree.map(jnp.cos, PARAMS)
    inner = optax.chain(optax.add_decayed_weights(0.5), optax.scale(-1.0))
    optimizer = in_units(inner)
    found, _ = optimizer.update(grads, optimizer.init(PARAMS), PARAMS)
    expected = jax.tree.map(lambda g, x, u: -u * (u * g + 0.5 * x / u), grads, PARAMS, UNITS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)


def test_units_stay_those_of_the_beginning():
    optimizer = in_units(optax.identity())
    state = optimizer.init(PARAMS)
    _, new = optimizer.update(PARAMS, state, jax.tree.map(lambda x: 7 * x, PARAMS))
    np.testing.assert_array_equal(new.units, state.units)


@pytest.mark.parametrize(
    ("params", "units"),
    [
        ({"w": jnp.zeros((2, 3)), "b": jnp.zeros(3)}, [0.2, 0.1]),
        ({"a": jnp.array([3.0, 4.0])}, [2 * 12.5**0.5]),
        ({"a": optax.MaskedNode(), "w": jnp.full((2, 2), 3.0, jnp.bfloat16)}, [3.0]),
        (jnp.full((2, 2), 3.0), [3.0]),
    ],
)
def test_units_of_zeros_vectors_and_partial_trees(params, units):
    np.testing.assert_allclose(in_units(optax.identity()).init(params).units, units, rtol=1e-6)


def test_a_spec_says_what_is_a_matrix():
    params = {"gates": jnp.ones((3, 4)), "depthwise": jnp.full((3, 4), 5.0)}
    spec = {"gates": ("in", Concat("h", "h")), "depthwise": (None, "in2")}
    np.testing.assert_allclose(in_units(optax.identity(), spec).init(params).units, [5.0, 1.0])
    units = in_units(optax.identity(), spec, adam="depth").init(params).units
    np.testing.assert_allclose(units, [2.0, 1.0])


@pytest.mark.parametrize(
    "tx",
    [in_units(optax.identity()), scale_by_distance(optax.identity()), scale_by_orthogonal()],
    ids=["units", "distance", "orthogonal"],
)
def test_the_state_of_another_optimizer_is_refused(tx):
    params = {"w": jnp.ones((3, 2))}
    for state in ({"count": 0}, optax.sgd(0.1).init(params)):
        with pytest.raises(TypeError, match=r"must be the \w+State that init of this transformation returns"):
            tx.update(params, state, params)
