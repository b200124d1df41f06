"""Models as frameworks hold them, and the state in their checkpoints."""

import runpy

import chex
import flax.serialization
import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from learned import AXES, make_params, make_weights
from places import ROOT

from optax_unf import unf

EXAMPLES = ROOT / "examples"


@pytest.mark.filterwarnings("ignore::DeprecationWarning:haiku")
@pytest.mark.parametrize("name", ["flax_train_state", "flax_nnx", "equinox", "haiku", "nested_lists"])
def test_example(name):
    loss = runpy.run_path(str(EXAMPLES / f"with_{name}.py"))["main"]()
    # The loss of guessing is 2.3.
    assert loss < 0.1


def trained(wrap):
    tx = wrap(unf(make_weights("tied"), spec=AXES))
    params = make_params()
    state = tx.init(params)
    for n in range(2):
        _, state = tx.update(make_params(n), state, params)
    return tx, state, params


WRAPS = {
    "alone": lambda tx: tx,
    "masked": lambda tx: optax.masked(tx, {"w": True, "b": False, "scale": False}),
    "multi_steps": lambda tx: optax.MultiSteps(tx, 2).gradient_transformation(),
}
each_wrap = pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)


def check_continues(tx, params, state, restored):
    chex.assert_trees_all_equal_structs(restored, state)
    chex.assert_trees_all_equal(restored, state)
    chex.assert_trees_all_equal_dtypes(restored, state)
    once, again = (tx.update(make_params(5), s, params) for s in (state, restored))
    chex.assert_trees_all_equal(once, again)


@each_wrap
def test_flax_serialization_round_trip(wrap):
    tx, state, params = trained(wrap)
    data = flax.serialization.to_bytes(state)
    restored = jax.tree.map(jax.numpy.asarray, flax.serialization.from_bytes(tx.init(params), data))
    check_continues(tx, params, state, restored)


@each_wrap
def test_orbax_round_trip(wrap, tmp_path):
    tx, state, params = trained(wrap)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", jax.eval_shape(tx.init, params))
    assert isinstance(jax.tree.leaves(restored)[0], jax.Array | np.ndarray)
    check_continues(tx, params, state, restored)
