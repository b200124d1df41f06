"""Inferred: what it refuses at once, and what it keeps of its arguments."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from optax_unf import Inferred, infer_spec, unf

PARAMS = {"w1": jnp.ones((3, 5)), "w2": jnp.ones((5, 2))}
X = jnp.ones((4, 3))


def loss(params, x, key=None):
    h = jnp.tanh(x @ params["w1"])
    if key is not None:
        h = h * jax.random.bernoulli(key, 0.5, h.shape)
    return jnp.sum(h @ params["w2"])


@pytest.mark.parametrize("mode", ["io", "spatial", "noise"])
@pytest.mark.parametrize("value", ["permutte", "Fixed", None, True, ["permute"]])
def test_an_unknown_mode_is_refused_at_once(mode, value):
    with pytest.raises(ValueError, match=rf"{mode} must be 'fixed' or 'permute', but is "):
        Inferred(loss, X, **{mode: value})


def test_a_misspelt_mode_is_refused_at_once():
    with pytest.raises(TypeError, match="noize"):
        Inferred(loss, X, noize="permute")


@pytest.mark.parametrize("fn", [PARAMS, X, "loss", None])
def test_what_is_no_function_is_refused_at_once(fn):
    with pytest.raises(TypeError, match=r"needs a function .* Write Inferred\(loss, batch\)"):
        Inferred(fn, X)


@pytest.mark.parametrize("io", ["fixed", "permute"])
@pytest.mark.parametrize("noise", ["fixed", "permute"])
def test_modes_are_those_of_infer_spec(io, noise):
    args = (X, jax.random.key(0))
    spec = Inferred(loss, *args, io=io, noise=noise).of(PARAMS)
    direct = infer_spec(loss, PARAMS, *args, io=io, noise=noise)
    assert (spec, spec.io, spec.noise, spec.notes) == (direct, direct.io, direct.noise, direct.notes)


class Model(nnx.Module):
    def __init__(self, rngs):
        self.hidden, self.out = nnx.Linear(3, 8, rngs=rngs), nnx.Linear(8, 2, rngs=rngs)
        self.norm, self.dropout = nnx.BatchNorm(8, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.out(self.dropout(jnp.tanh(self.norm(self.hidden(x)))))

    def logits(self, x):
        return self(x)


def model_loss(model, x):
    return jnp.sum(model(x))


@pytest.mark.parametrize(
    "fn", [model_loss, lambda model, x: model.logits(x), lambda model, x: model.out(model.norm(model.hidden(x)))]
)
def test_a_loss_of_an_nnx_model_is_told_what_to_write(fn):
    model = Model(nnx.Rngs(0))
    with pytest.raises(TypeError, match=r"must take the parameters, here the State .* uses them as the model") as error:
        nnx.Optimizer(model, unf(spec=Inferred(fn, X)), wrt=nnx.Param)
    with pytest.raises(TypeError, match="must take the parameters, here the State"):
        infer_spec(fn, nnx.state(model, nnx.Param), X)

    # The lines of the message work as they are, also where the model has statistics and draws.
    lines = [line for line in str(error.value).splitlines() if " = " in line]
    names = {"nnx": nnx, "Inferred": Inferred, "model": model, "batch": X, "loss": fn, "model_loss": fn}
    exec("\n".join(lines), names)
    spec = names["spec"].of(names["params"])
    hidden = {axis for leaf in spec.leaves for axis in leaf.axes if spec.sizes[axis] == 8}
    assert len(lines) == 2
    assert len(hidden) == 1


def test_other_errors_of_a_loss_of_a_state_stay_as_they_are():
    state = nnx.state(Model(nnx.Rngs(0)), nnx.Param)
    with pytest.raises(TypeError, match="dot_general"):
        Inferred(lambda state, x: x @ state["out"]["kernel"][...], X).of(state)
    with pytest.raises(KeyError, match="absent"):
        Inferred(lambda state, x: state["absent"], X).of(state)


def test_modes_are_permute_by_default():
    args = (X, jax.random.key(0))
    assert Inferred(loss, *args).of(PARAMS) == infer_spec(loss, PARAMS, *args, io="permute", noise="permute")


@pytest.mark.parametrize("scale", [jnp.asarray(2.0), np.float32(2.0), 2.0])
def test_types_of_arguments_are_those_that_the_function_would_get(scale):
    """Of a weak type, which does not widen what it meets: a carry keeps its dtype."""

    def scanned(params, x, scale):
        def step(h, row):
            return jnp.tanh(row @ params["w1"] + h) * scale, None

        return jnp.sum(jax.lax.scan(step, jnp.zeros(5, x.dtype), x)[0] @ params["w2"])

    narrow, x = (PARAMS, X) if isinstance(scale, np.float32) else jax.tree.map(jnp.bfloat16, (PARAMS, X))
    assert Inferred(scanned, x, scale).of(narrow) == infer_spec(scanned, narrow, x, scale, io="permute")


def test_arguments_themselves_are_not_kept():
    x = np.ones((4, 3))
    spec = Inferred(loss, x)
    assert not any(isinstance(held, np.ndarray | jax.Array) for held in jax.tree.leaves(vars(spec)))


def test_a_spec_may_be_a_function_of_the_parameters():
    names = {"w1": ("in", "hidden"), "w2": ("hidden", "out")}
    seen = []

    def function(params):
        seen.append(jax.tree.structure(params))
        return names

    steps = []
    for spec in (names, function, Inferred(loss, X)):
        tx = unf("mlp-fashion-mnist-tied", spec=spec)
        steps.append(tx.update(PARAMS, tx.init(PARAMS), PARAMS)[0])
    assert seen
    assert set(seen) == {jax.tree.structure(PARAMS)}
    for other in steps[1:]:
        chex.assert_trees_all_equal(steps[0], other)


def test_a_function_may_give_the_spec_of_a_whole_model_for_a_part_of_it():
    whole = infer_spec(loss, PARAMS, X, io="permute")
    tx = optax.masked(unf("mlp-fashion-mnist-tied", spec=lambda _: whole), {"w1": True, "w2": False})
    updates, _ = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    assert not np.array_equal(updates["w1"], PARAMS["w1"])


def test_it_prints_in_a_line():
    assert repr(Inferred(loss, X)) == "Inferred(loss, io='permute', spatial='fixed', noise='permute', strict=False)"
