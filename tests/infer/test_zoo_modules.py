"""Permutation specs of models in flax.nnx, haiku and equinox: the truth is right, and inference finds it."""

import jax
import pytest
from zoo import differing_leaves, same_up_to_renaming
from zoo_modules import CASES

import optax_unf
from optax_unf import make_spec


@pytest.fixture(scope="module", params=CASES)
def model(request):
    return CASES[request.param]()


def truth(model):
    return make_spec(model.axes, model.params, sizes=model.sizes)


def test_a_model_does_not_change_under_its_spec(model):
    optax_unf.check_spec(model.fn, truth(model), model.params, *model.args, key=jax.random.key(0), trials=1)


def test_inference_finds_the_spec(model):
    inferred = optax_unf.infer_spec(model.fn, model.params, *model.args)
    assert same_up_to_renaming(inferred, truth(model)), differing_leaves(inferred, truth(model))
