"""Specs of models in plain JAX and flax.linen: those written by hand are right, and inference finds them."""

import jax
import pytest
from zoo import differing_leaves, same_up_to_renaming
from zoo_functions import CASES

import optax_unf
from optax_unf import check_spec, make_spec


@pytest.mark.parametrize("name", CASES)
def test_the_spec_written_by_hand_is_right(name):
    case = CASES[name]()
    spec = make_spec(case.axes, case.params, sizes=case.sizes)
    check_spec(case.fn, spec, case.params, *case.args, key=jax.random.key(0), trials=1)


@pytest.mark.parametrize("name", CASES)
def test_inference_finds_the_spec_written_by_hand(name):
    case = CASES[name]()
    truth = make_spec(case.axes, case.params, sizes=case.sizes)
    found = optax_unf.infer_spec(case.fn, case.params, *case.args)
    assert same_up_to_renaming(found, truth), differing_leaves(found, truth)
