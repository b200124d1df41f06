"""What `unf` and its parts refuse, and say."""

import jax.numpy as jnp
import optax
import pytest

from optax_unf import unf

PARAMS = {"a": jnp.ones((3, 2)), "b": jnp.ones(2)}


def test_gradients_that_lack_a_leaf_are_told():
    tx = unf(total_steps=10)
    state = tx.init(PARAMS)
    part = {"a": PARAMS["a"]}
    with pytest.raises(ValueError, match="gradients must have the leaves of the parameters, but lack 'b'"):
        tx.update(part, state, PARAMS)
    with pytest.raises(ValueError, match="gradients must have the leaves of the parameters, but also have 'b'"):
        tx.update(PARAMS, state, part)
    with pytest.raises(ValueError, match="state is one of 2 leaves, but there are 1 gradients"):
        tx.update(part, state, part)


def test_a_schedule_is_no_number_of_steps():
    with pytest.raises(TypeError, match="total_steps must be an integer"):
        unf(total_steps=optax.constant_schedule(3.0))


def test_a_learning_rate_in_the_place_of_weights_is_answered_first():
    with pytest.raises(TypeError, match=r"but are of type float\. A learning rate is not needed"):
        unf(1e-3)
