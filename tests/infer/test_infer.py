"""Inference: what it finds, what it says about it, and what bad input gets."""

import functools
import subprocess
import sys
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_unf
from optax_unf import Concat, check_spec, infer_spec

KEY = jax.random.key(0)


def axes_of(spec):
    return {leaf.path: leaf.axes for leaf in spec.leaves}


def dense(params, x):
    return jax.nn.relu(x @ params["w1"] + params["b1"]) @ params["w2"]


DENSE = {"w1": jnp.ones((3, 5)), "b1": jnp.ones(5), "w2": jnp.ones((5, 2))}


# Names and modes.


def test_names_are_where_a_permutation_occurs_first():
    spec = infer_spec(dense, DENSE, jnp.ones((4, 3)))
    assert axes_of(spec) == {"b1": ("b1:0",), "w1": (None, "b1:0"), "w2": ("b1:0", None)}
    assert spec.io == ()


def test_io_permute_names_what_touches_the_data():
    spec = infer_spec(dense, DENSE, jnp.ones((4, 3)), io="permute")
    assert axes_of(spec) == {"b1": ("b1:0",), "w1": ("w1:0", "b1:0"), "w2": ("b1:0", "w2:1")}
    assert spec.io == ("w1:0", "w2:1")
    check_spec(dense, spec, DENSE, jnp.ones((4, 3)), key=KEY)


def test_pretrained_full_weights_fit_the_inferred_spec_of_their_task():
    task = optax_unf.tasks.get("mlp-digits")
    params = task.init(KEY)
    spec = infer_spec(task.loss, params, task.sample(KEY), io="permute")
    tx = optax_unf.unf("mlp-fashion-mnist-unf", spec=spec)
    by_hand = optax_unf.unf("mlp-fashion-mnist-unf", spec=task.axes)
    grads = jax.grad(task.loss)(params, task.sample(KEY))
    new, old = (t.update(grads, t.init(params), params)[0] for t in (tx, by_hand))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), new, old)


def convolve(params, x):
    y = jax.lax.conv_general_dilated(x, params["k"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jax.nn.relu(y).mean((1, 2)) @ params["w"]


def test_spatial_axes_of_kernels_have_names_of_their_own_when_asked():
    params = {"k": jnp.ones((3, 3, 2, 5)), "w": jnp.ones((5, 4))}
    x = jnp.ones((1, 6, 6, 2))
    assert axes_of(infer_spec(convolve, params, x))["k"] == (None, None, None, "k:3")
    assert axes_of(infer_spec(convolve, params, x, spatial="permute"))["k"] == ("k:0", "k:1", None, "k:3")


def noisy(params, x, key):
    h = jax.nn.relu(x @ params["w1"]) * jax.random.bernoulli(key, 0.5, (4, 5))
    return h @ params["w2"]


def test_noise_fixes_axes_for_one_key_but_not_in_distribution():
    params = {"w1": DENSE["w1"], "w2": DENSE["w2"]}
    args = (jnp.ones((4, 3)), KEY)
    assert infer_spec(noisy, params, *args).sizes == {}
    assert axes_of(infer_spec(noisy, params, *args, noise="permute")) == {"w1": (None, "w1:1"), "w2": ("w1:1", None)}


def test_vocabulary_touches_the_data_by_indexing_and_by_one_hot_labels():
    def loss(params, tokens):
        x = params["embedding"][tokens]
        logits = x @ params["out"]
        labels = jax.nn.one_hot(tokens, 7)
        return (jax.nn.log_softmax(logits) * labels).sum() + logits[jnp.arange(4), tokens].sum()

    params = {"embedding": jnp.ones((7, 5)), "out": jnp.ones((5, 7))}
    spec = infer_spec(loss, params, jnp.zeros(4, int), io="permute")
    assert axes_of(spec) == {"embedding": ("embedding:0", "embedding:1"), "out": ("embedding:1", "out:1")}
    assert spec.io == ("embedding:0", "out:1")


def test_a_tied_embedding_has_one_vocabulary():
    def loss(params, tokens):
        return optax.softmax_cross_entropy_with_integer_labels(params["e"][tokens] @ params["e"].T, tokens).mean()

    assert axes_of(infer_spec(loss, {"e": jnp.ones((7, 5))}, jnp.zeros(4, int))) == {"e": (None, "e:1")}


def test_concatenated_parts_permute_apart():
    def fn(params, x):
        return jnp.concatenate([jnp.tanh(x @ params["a"]), jnp.tanh(x @ params["b"])], -1) @ params["out"]

    params = {"a": jnp.ones((2, 3)), "b": jnp.ones((2, 4)), "out": jnp.ones((7, 2))}
    spec = infer_spec(fn, params, jnp.ones((1, 2)))
    assert axes_of(spec)["out"] == (Concat("a:1", "b:1"), None)
    check_spec(fn, spec, params, jnp.ones((1, 2)), key=KEY)


def test_experts_permute_under_top_k_routing():
    def fn(params, x):
        gate = jax.nn.softmax(x @ params["router"])
        weight, expert = jax.lax.top_k(gate, 2)
        chosen = jax.nn.one_hot(expert, 4) * weight[..., None]
        y = jnp.tanh(jnp.einsum("bi,eio->beo", x, params["experts"]))
        return jnp.einsum("bke,beo->bo", chosen, y)

    params = {
        "router": jax.random.normal(KEY, (3, 4)),
        "experts": jax.random.normal(jax.random.key(1), (4, 3, 5)),
    }
    x = jax.random.normal(jax.random.key(2), (6, 3))
    spec = infer_spec(fn, params, x)
    assert axes_of(spec) == {"experts": ("experts:0", None, None), "router": (None, "experts:0")}
    check_spec(fn, spec, params, x, key=KEY)


@pytest.mark.parametrize(
    "route",
    [
        lambda h: h.astype(jnp.int32),
        lambda h: h.astype(bool),
        lambda h: jnp.array([[1.0], [0.0], [1.0]]) * h,
        lambda h: h * jnp.zeros(()),
    ],
    ids=["integers", "booleans", "masked rows", "zero"],
)
def test_what_may_tie_is_no_route(route):
    def loss(params, x):
        return jnp.mean(params["b"][jnp.argmax(route(x @ params["w"]), -1)])

    params, x = {"w": jnp.ones((4, 5)), "b": jnp.ones(5)}, jnp.ones((3, 4))
    assert axes_of(infer_spec(loss, params, x)) == {"b": (None,), "w": (None, None)}
    # The same without what makes the ties.
    spec = infer_spec(lambda p, x: jnp.mean(p["b"][jnp.argmax(3.0 * (x @ p["w"]), -1)]), params, x)
    assert axes_of(spec) == {"b": ("b:0",), "w": (None, "b:0")}


@pytest.mark.parametrize(
    "rows",
    [
        jax.nn.relu,
        lambda h: jax.nn.relu(h) - jax.nn.relu(h).mean(-1, keepdims=True),
        lambda h: h * jax.random.bernoulli(KEY, 0.5, (3, 1)),
        lambda h: jnp.where(jax.random.bernoulli(KEY, 0.5, (3, 1)), h, 0.0),
        lambda h: jnp.stack([jax.nn.relu(h[0]), h[1], h[2]]),
    ],
    ids=["relu", "centred", "mask", "dropped rows", "one row"],
)
def test_rows_that_may_be_zero_route_by_the_order(rows):
    def loss(params, x):
        return jnp.mean(params["b"][jnp.argmax(rows(x @ params["w"]) @ params["router"], -1)])

    params = {"w": jnp.ones((4, 6)), "router": jnp.ones((6, 5)), "b": jnp.ones(5)}
    spec = infer_spec(loss, params, jnp.ones((3, 4)))
    assert axes_of(spec)["b"] == (None,)
    assert axes_of(spec)["router"][1] is None


@pytest.mark.parametrize(
    "rows",
    [
        jnp.tanh,
        jax.nn.gelu,
        jax.nn.softmax,
        lambda h: h + jax.nn.relu(h @ jnp.ones((6, 6))),
        lambda h: (h - h.mean(-1, keepdims=True)) / jnp.sqrt(h.var(-1, keepdims=True) + 1e-6),
    ],
    ids=["tanh", "gelu", "softmax", "residual", "normalized"],
)
def test_other_rows_route_by_what_they_are(rows):
    def loss(params, x):
        return jnp.mean(params["b"][jnp.argmax(rows(x @ params["w"]) @ params["router"], -1)])

    rng = np.random.default_rng(0)
    shapes = {"w": (4, 6), "router": (6, 5), "b": (5,)}
    params = {path: jnp.asarray(rng.normal(size=shape), jnp.float32) for path, shape in shapes.items()}
    x = jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)
    spec = infer_spec(loss, params, x)
    assert axes_of(spec)["b"] == ("b:0",)
    assert axes_of(spec)["router"][1] == "b:0"
    check_spec(loss, spec, params, x, key=KEY)


def test_a_collective_over_a_mapped_axis_is_a_reduction():
    """Batch normalization as equinox has it."""

    def loss(params, x):
        def one(x):
            h = x @ params["w"]
            mean = jax.lax.pmean(h, "batch")
            return jax.nn.relu((h - mean) / (jax.lax.pmax(h, "batch") - jax.lax.pmin(h, "batch"))) @ params["o"]

        return jax.vmap(one, axis_name="batch")(x)

    rng = np.random.default_rng(0)
    params = {path: jnp.asarray(rng.normal(size=shape), jnp.float32) for path, shape in (("w", (3, 6)), ("o", (6, 2)))}
    x = jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)
    spec = infer_spec(loss, params, x)
    assert axes_of(spec) == {"o": ("o:0", None), "w": (None, "o:0")}
    check_spec(loss, spec, params, x, key=KEY)


def test_constants_are_folded_in_their_types():
    def sliced(params, x):
        start = (jnp.float32(0.9) * 3).astype(jnp.int32)  # 2, not 2.7
        return jnp.sum(jax.lax.dynamic_slice(x @ params["w"], (2 * start,), (2,)) ** 2)

    params, x = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(3, 8)), jnp.float32)}, jnp.arange(1.0, 4.0)
    check_spec(sliced, infer_spec(sliced, params, x), params, x, key=KEY)

    def masked(params, x):
        kept = jnp.array([1.0, 0.0, 1.0, 1.0]).astype(bool) & (jnp.arange(4) < 3)
        scale = jnp.where(jnp.array([2.0, 0.0, 1.0, 3.0]).astype(bool), jnp.arange(1.0, 5.0), 0.0)
        return jnp.sum(jnp.where(kept, x @ params["w"], 0.0) * scale)

    spec = infer_spec(masked, {"w": jnp.ones((3, 4))}, x)
    assert axes_of(spec) == {"w": (None, None)}


def test_ties_make_routing_depend_on_the_order():
    def fn(params, x):
        return (x @ params["w"])[jnp.argmax(jax.nn.relu(params["router"]))]

    params = {"router": jnp.ones(4), "w": jnp.ones((3, 4))}
    assert infer_spec(lambda p, x: fn({"router": p["router"], "w": p["w"]}, x), params, jnp.ones((4, 3))).sizes == {}


def test_an_index_used_as_a_number_fixes_what_it_points_into():
    spec = infer_spec(lambda p, x: jnp.argmax(p["w"]) * x, {"w": jnp.ones(4)}, jnp.ones(()))
    assert spec.sizes == {}


def test_shapes_are_enough_and_nothing_runs():
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), DENSE)
    assert infer_spec(dense, params, jax.ShapeDtypeStruct((4, 3), jnp.float32)) == infer_spec(
        dense, DENSE, jnp.ones((4, 3))
    )


def test_settings_pass_as_plain_python_values():
    def fn(params, x, activation, double):
        y = {"relu": jax.nn.relu, "tanh": jnp.tanh}[activation](x @ params["w1"]) @ params["w2"]
        return 2 * y if double else y

    params = {"w1": DENSE["w1"], "w2": DENSE["w2"]}
    assert infer_spec(fn, params, jnp.ones((4, 3)), "relu", True).sizes == {"w1:1": 5}


@pytest.mark.slow
def test_the_same_spec_in_every_process():
    code = (
        "import jax.numpy as jnp, optax_unf\n"
        "f = lambda p, x: (jnp.tanh(x @ p['b']) @ p['a'] + jnp.tanh(x @ p['c']) @ p['a'])\n"
        "p = {'a': jnp.ones((5, 2)), 'b': jnp.ones((3, 5)), 'c': jnp.ones((3, 5))}\n"
        "print(optax_unf.infer_spec(f, p, jnp.ones((1, 3)), io='permute'))"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1
    assert "'a:0'" in printed.pop()


# What it reports.


def test_it_prints_why_axes_are_fixed():
    def fn(params, x):
        return jnp.cumsum(x @ params["w"]).sum() + params["unused"].sum() * 0 + x.sum()

    printed = str(infer_spec(fn, {"w": jnp.ones((3, 5)), "unused": jnp.ones(4)}, jnp.ones(3)))
    assert "axis 0: data or output" in printed
    assert "axis 1: its order matters" in printed


def test_neighbours_that_are_compared_keep_their_order():
    spec = infer_spec(lambda p: (p["w"][:-1] * p["w"][1:]).sum(), {"w": jnp.ones(6)})
    assert axes_of(spec) == {"w": (None,)}
    assert spec.notes == (("w", "axis 0: its order matters"),)


def test_inferring_needs_all_parameters():
    spec = optax_unf.Inferred(dense, jnp.ones((4, 3)))
    tx = optax.masked(optax_unf.unf("mlp-fashion-mnist-deepsets", spec=spec), {"w1": True, "b1": False, "w2": True})
    with pytest.raises(ValueError, match="took some out"):
        tx.update(DENSE, tx.init(DENSE), DENSE)


def test_parameters_that_are_ignored_have_names_of_their_own():
    spec = infer_spec(dense, {**DENSE, "extra": jnp.ones((2, 3))}, jnp.ones((4, 3)))
    assert axes_of(spec)["extra"] == ("extra:0", "extra:1")
    assert ("extra", "not used") in spec.notes
    assert "not used" in str(spec)


# What it does not know, and what it refuses.


def unknown(params, x):
    return jnp.linalg.det(params["square"]) * (x @ params["w"]).sum()


def test_an_unknown_primitive_fixes_its_axes_and_warns_once():
    params = {"square": jnp.eye(5), "w": jnp.ones((2, 5))}
    with pytest.warns(UserWarning, match=r"no rule for the primitive 'lu'.*test_infer.py:\d+") as record:
        spec = infer_spec(unknown, params, jnp.ones(2))
    assert len(record) == 1
    assert axes_of(spec) == {"square": (None, None), "w": (None, "w:1")}
    with pytest.raises(NotImplementedError, match="'lu'"):
        infer_spec(unknown, params, jnp.ones(2), strict=True)


def test_unknown_primitives_on_data_alone_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        infer_spec(lambda p, x: jnp.linalg.det(x) * p["w"].sum(), {"w": jnp.ones(3)}, jnp.eye(3))


@pytest.mark.parametrize(
    ("fn", "params", "args", "error", "match"),
    [
        (lambda p, x: x if p["w"].sum() > 0 else -x, {"w": jnp.ones(2)}, (1.0,), TypeError, "jax.lax.cond"),
        (lambda p, x: x * 2, {"w": jnp.ones(2)}, (jnp.ones(2),), ValueError, "no leaf is used"),
        (dense, {"w1": "kernel"}, (jnp.ones(3),), TypeError, "leaf 'w1' is 'kernel'"),
        (dense, {"w1": jnp.ones((3, 5))}, (jnp.ones(3),), KeyError, "b1"),
        (dense, DENSE, (), TypeError, "missing 1 required positional argument"),
    ],
)
def test_bad_input(fn, params, args, error, match):
    with pytest.raises(error, match=match):
        infer_spec(fn, params, *args)


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="io must be 'fixed' or 'permute', but is 'free'"):
        infer_spec(dense, DENSE, jnp.ones(3), io="free")


def test_empty_parameters():
    assert infer_spec(lambda p: jnp.ones(()), {}).leaves == ()


# Size.


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, mask):
        x = x + nn.MultiHeadDotProductAttention(num_heads=12)(nn.LayerNorm()(x), mask=mask)
        return x + nn.Dense(768)(nn.gelu(nn.Dense(3072)(nn.LayerNorm()(x))))


class GPT2(nn.Module):
    blocks: int

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(50257, 768)
        x = embed(tokens) + self.param("positions", nn.initializers.normal(), (1024, 768))
        for _ in range(self.blocks):
            x = Block()(x, nn.make_causal_mask(tokens))
        return embed.attend(nn.LayerNorm()(x))


@pytest.mark.slow
def test_the_gradient_of_a_transformer_of_gpt_2_size():
    model = GPT2(12)
    tokens = jax.ShapeDtypeStruct((2, 1024), jnp.int32)
    params = jax.eval_shape(model.init, KEY, tokens)["params"]

    def step(params, tokens):
        def loss(params):
            logits = model.apply({"params": params}, tokens)
            return optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:]).mean()

        value, grads = jax.value_and_grad(loss)(params)
        return value, optax.tree.norm(grads)

    spec = infer_spec(step, params, tokens)
    # The residual stream; and in each block the heads, the size of queries and keys, that of values, the hidden layer.
    assert len(spec.sizes) == 1 + 12 * 4
    assert sorted(set(spec.sizes.values())) == [12, 64, 768, 3072]
