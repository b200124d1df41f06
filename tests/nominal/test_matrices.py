"""Which arrays are taken for matrices."""

import jax
import jax.numpy as jnp
import optax
import pytest

from optax_unf import Inferred, describe_matrices, infer_spec, make_spec, muon_dimension_numbers

S = jax.ShapeDtypeStruct


def shapes(**kwargs):
    return {path: S(shape, jnp.float32) for path, shape in kwargs.items()}


def taken(params, spec=None, **options):
    lines = str(describe_matrices(params, spec, **options)).splitlines()[1:]
    found = describe_matrices(params, spec, **options).leaves
    assert len(lines) == len(found)
    return {
        leaf.path: [m and m.shown(b.shape) for m, b in zip(leaf.matrices, leaf.leaf.parts, strict=True)]
        for leaf in found
    }


def test_conventions_without_a_spec():
    params = {
        "dense": shapes(kernel=(8, 16), bias=(16,)),
        "conv": shapes(kernel=(3, 3, 4, 16)),
        "depthwise": shapes(kernel=(3, 3, 1, 16)),
        "query": shapes(kernel=(8, 2, 4), bias=(2, 4)),
        "out": shapes(kernel=(2, 4, 8)),
        "last": shapes(kernel=(8, 1)),
        "pos_embedding": S((5, 8), jnp.float32),
    }
    assert taken(params) == {
        "conv/kernel": ["36 x 16"],
        "dense/bias": [None],
        "dense/kernel": ["8 x 16"],
        "depthwise/kernel": [None],
        "last/kernel": [None],
        "out/kernel": ["8 x 8"],
        "pos_embedding": [None],
        "query/bias": [None],
        "query/kernel": ["8 x 8"],
    }
    why = {leaf.path: leaf.why for leaf in describe_matrices(params).leaves}
    assert why["last/kernel"] == "a single row or column"
    spec = {"first": ("in", "hidden"), "last": ("hidden", "out")}
    found = describe_matrices(shapes(first=(3, 8), last=(8, 1)), spec)
    assert [leaf.why for leaf in found.leaves] == ["a pair of permuted axes", "a single row or column"]
    assert taken(params, heads=True)["query/kernel"] == ["2 of 8 x 4"]
    assert taken(params, adam="dense|out")["dense/kernel"] == [None]


def transformer(params, x):
    def heads(a):
        return a.reshape(*a.shape[:2], 2, 4)

    q, k, v = map(heads, jnp.split(x @ params["qkv"], 3, -1))
    weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k))
    x = x + jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(*x.shape[:2], 8) @ params["out"]
    gates = jax.nn.softmax(x @ params["router"])
    hidden = jax.nn.relu(jnp.einsum("bld,edf->blef", x, params["up"]) + params["up_b"][None, None])
    return x + jnp.einsum("ble,blef,efd->bld", gates, hidden, params["down"])


BLOCK = shapes(qkv=(6, 24), out=(8, 6), router=(6, 3), up=(3, 6, 7), up_b=(3, 7), down=(3, 7, 6))
FOUND = {
    "qkv": ["6 x 8"] * 3,
    "out": ["8 x 6"],
    "router": ["6 x 3"],
    "up": ["3 of 6 x 7"],
    "up_b": [None],
    "down": ["3 of 7 x 6"],
}


def test_parts_and_experts_of_an_inferred_spec():
    x = S((2, 5, 6), jnp.float32)
    spec = infer_spec(transformer, BLOCK, x, io="permute")
    assert taken(BLOCK, spec) == FOUND
    assert taken(BLOCK, Inferred(transformer, x)) == FOUND
    assert taken(BLOCK, lambda params: spec) == FOUND
    assert taken({"up": BLOCK["up"], "qkv": optax.MaskedNode()}, spec) == {"up": FOUND["up"]}
    by_head = taken(BLOCK, spec, heads=True)
    assert by_head["qkv"] == ["2 of 6 x 4"] * 3
    assert by_head["up"] == FOUND["up"]


@pytest.mark.promotes("optax's counts of steps are whole numbers")
def test_convolutions_layers_and_gates():
    params = shapes(
        conv=(3, 3, 4, 6), torch=(8, 6, 3, 3), depth=(8, 1, 3, 3), first=(3, 3, 3, 4), layers=(5, 8, 9),
        layers_scale=(5, 8), gates=(9, 32), recurrent=(8, 32), flat=(72, 9)
    )  # fmt: skip
    names = {
        "conv": (None, None, "a", "b"),
        "torch": ("c", "b", None, None),
        "depth": ("c", None, None, None),
        "first": (None, None, None, "a"),
        "layers": (None, "c", "d"),
        "layers_scale": (None, "c"),
        "gates": ("d", (None, "h")),
        "recurrent": ("h", (None, "h")),
        "flat": ((None, "c"), "d"),
    }
    spec = make_spec(names, params)
    assert taken(params, spec) == {
        "conv": ["36 x 6"],
        "torch": ["8 x 54"],
        "depth": [None],
        "first": ["27 x 4"],
        "layers": ["5 of 8 x 9"],
        "layers_scale": [None],
        "gates": ["4 of 9 x 8"],
        "recurrent": ["4 of 8 x 8"],
        "flat": ["72 x 9"],
    }
    numbers = muon_dimension_numbers(spec, params)
    assert numbers["torch"] == optax.contrib.MuonDimensionNumbers((0,), (1, 2, 3))
    assert numbers["depth"] is None
    muon = optax.contrib.muon(0.1, muon_weight_dimension_numbers=numbers)
    updates = jax.eval_shape(lambda p: muon.update(p, muon.init(p), p)[0], params)
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params)


def test_a_convolution_of_slices_is_no_stack():
    def model(params, x):
        shifted = [x[:, i : i + 5, j : j + 5] @ params["first"][i, j] for i in range(2) for j in range(2)]
        x = jax.nn.relu(sum(shifted) + params["b"][None, None, None])
        return sum(x[:, i : i + 4, j : j + 4] @ params["conv"][i, j] for i in range(2) for j in range(2))

    params = shapes(first=(2, 2, 3, 6), b=(6,), conv=(2, 2, 6, 5))
    spec = infer_spec(model, params, S((4, 6, 6, 3), jnp.float32), io="permute")
    assert taken(params, spec) == {"b": [None], "conv": ["24 x 5"], "first": ["12 x 6"]}


def test_a_misfit_is_refused():
    spec = make_spec({"w": ("a", "b")}, shapes(w=(2, 3)))
    with pytest.raises(ValueError, match="shape"):
        describe_matrices(shapes(w=(2, 4)), spec)
