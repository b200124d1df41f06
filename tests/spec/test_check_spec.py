"""check_spec: what it lets pass, what it finds, and whom it blames."""

import dataclasses
import re

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_unf import Inferred, SpecError, check_spec, infer_spec, make_spec

KEY = jax.random.key(0)
X = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)


def init(seed=0, dtype=np.float32, **shapes):
    rng = np.random.default_rng(seed)
    return {path: jnp.asarray(rng.normal(size=shape), dtype) for path, shape in shapes.items()}


def mlp(params, x):
    x = jnp.tanh(x @ params["w1"] + params["b1"])
    x = jnp.tanh(x @ params["w2"] + params["b2"])
    return x @ params["w3"] + params["b3"]


MLP_SHAPES = {"w1": (3, 5), "b1": (5,), "w2": (5, 5), "b2": (5,), "w3": (5, 2), "b3": (2,)}
MLP_AXES = {"w1": (None, "a"), "b1": ("a",), "w2": ("a", "b"), "b2": ("b",), "w3": ("b", None), "b3": (None,)}


def wrong_names(axes, fn=mlp, params=None, args=(X,), **options):
    with pytest.raises(SpecError) as caught:
        check_spec(fn, axes, init(**MLP_SHAPES) if params is None else params, *args, key=KEY, **options)
    return set(caught.value.names), str(caught.value)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_the_right_spec_passes_for_parameters_of_any_type(dtype):
    check_spec(mlp, make_spec(MLP_AXES, init(**MLP_SHAPES)), init(**MLP_SHAPES, dtype=dtype), X, key=KEY)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    ("change", "names"),
    [
        pytest.param({"w1": ("in", "a")}, {"in"}, id="a name on an input axis"),
        pytest.param({"b3": ("out",)}, {"out"}, id="a name on an output axis"),
        pytest.param({"b1": ("a1",)}, {"a", "a1"}, id="a tie that is missing"),
        pytest.param({"w2": ("b", "a")}, {"a", "b"}, id="swapped names"),
        pytest.param({"b1": ("b",)}, {"a", "b"}, id="the wrong layer's name"),
        pytest.param({"b1": (None,)}, {"a"}, id="a bias left in place"),
        pytest.param(
            {path: tuple(n and "a" for n in axes) for path, axes in MLP_AXES.items()},
            set(),
            id="one name for two layers",
        ),
    ],
)
def test_wrong_names_are_found_and_no_others(change, names, dtype):
    axes = MLP_AXES | change
    params = init(**MLP_SHAPES, dtype=dtype)
    if not names:  # fewer symmetries than there are, but all of them true
        check_spec(mlp, axes, params, X, key=KEY)
    else:
        assert wrong_names(axes, params=params, trials=1)[0] == names


def test_the_message_says_where_names_act_and_how_much_changes():
    _, message = wrong_names(MLP_AXES | {"w1": ("in", "a")})
    assert re.search(r"'in' alone, on w1\[0\]: output \(the bare array\) changes by [\d.]+e[+-]0[0-2] of", message)
    assert "'a'" not in message


def test_what_zero_biases_hide_is_found():
    params = init(**MLP_SHAPES) | {"b1": jnp.zeros(5)}
    axes = MLP_AXES | {"b1": ("own",)}
    check_spec(mlp, axes, params | {"w1": params["w1"]}, X, key=KEY, skip=("a",), perturb=False)
    assert wrong_names(axes, params=params, skip=("a",))[0] == {"own"}
    assert wrong_names(axes, params=params)[0] == {"own", "a"}


def test_what_scales_of_one_hide_is_found():
    model = flax.linen.Sequential([flax.linen.Dense(5), flax.linen.LayerNorm(), flax.linen.Dense(2)])
    params = model.init(KEY, X)["params"]
    axes = {
        "layers_0": {"kernel": (None, "h"), "bias": ("h",)},
        "layers_1": {"scale": ("h",), "bias": ("h",)},
        "layers_2": {"kernel": ("h", None), "bias": (None,)},
    }

    def predict(params, x):
        return model.apply({"params": params}, x)

    check_spec(predict, axes, params, X, key=KEY)
    axes["layers_1"]["scale"] = ("own",)
    assert wrong_names(axes, predict, params)[0] == {"own", "h"}
    check_spec(predict, axes, params, X, key=KEY, perturb=False)


def test_perturbing_keeps_variances_positive():
    def normalize(params, x):
        return (x @ params["w"] / jnp.sqrt(params["var"])).sum() + jnp.log(params["var"]).sum()

    params = init(w=(3, 5)) | {"var": jnp.zeros(5)}
    check_spec(normalize, {"w": (None, "h"), "var": ("h",)}, params, X, key=KEY, trials=5)


def attention(params, x):
    q, k, v = (jnp.einsum("td,dhk->htk", x, params[name]) for name in "qkv")
    weights = jax.nn.softmax(q @ jnp.swapaxes(k, 1, 2))
    return jnp.einsum("htk,hkd->td", weights @ v, params["out"])


ATTENTION_SHAPES = {"q": (3, 2, 4), "k": (3, 2, 4), "v": (3, 2, 4), "out": (2, 4, 3)}
ATTENTION_AXES = {
    "q": (None, "heads", "qk"),
    "k": (None, "heads", "qk"),
    "v": (None, "heads", "v"),
    "out": ("heads", "v", None),
}


def test_attention_heads():
    params = init(**ATTENTION_SHAPES)
    check_spec(attention, ATTENTION_AXES, params, X, key=KEY)
    assert wrong_names(ATTENTION_AXES | {"out": ("other", "v", None)}, attention, params)[0] == {"heads", "other"}
    assert wrong_names(ATTENTION_AXES | {"k": (None, "heads", "k")}, attention, params)[0] == {"qk", "k"}


def test_heads_and_head_size_are_not_one_name():
    def merged(params, x):
        return attention({n: w.reshape(ATTENTION_SHAPES[n]) for n, w in params.items()}, x)

    params = init(q=(3, 8), k=(3, 8), v=(3, 8), out=(8, 3))
    product = dict.fromkeys("qk", (None, ("heads", "qk")))
    product |= {"v": (None, ("heads", "v")), "out": (("heads", "v"), None)}
    check_spec(merged, make_spec(product, params, sizes={"heads": 2}), params, X, key=KEY)
    one = dict.fromkeys("qkv", (None, "merged")) | {"out": ("merged", None)}
    assert wrong_names(one, merged, params)[0] == {"merged"}


@pytest.mark.parametrize("seed", range(20))
def test_a_name_that_is_wrong_on_half_of_its_group_never_passes(seed):
    # f is unchanged by 8 of the 24 permutations of its 4 entries: the swaps within pairs and of the pairs.
    def pairs(params):
        w = params["w"].reshape(2, 2)
        return (w[:, 0] * w[:, 1]).sum()

    with pytest.raises(SpecError):
        check_spec(pairs, {"w": ("n",)}, init(w=(4,)), key=jax.random.key(seed), trials=1)


def test_two_names_of_size_two_that_should_be_one():
    params = init(w1=(3, 2), w2=(2, 1))
    axes = {"w1": (None, "a"), "w2": ("b", None)}
    for seed in range(5):
        with pytest.raises(SpecError, match="'a' alone, on w1"):
            check_spec(
                lambda p, x: jnp.tanh(x @ p["w1"]) @ p["w2"], axes, params, X, key=jax.random.key(seed), trials=1
            )


def test_integer_outputs_are_compared_exactly():
    def classes(params, x):
        return {"class": mlp(params, x).argmax(-1), "shape": 3}

    check_spec(classes, MLP_AXES, init(**MLP_SHAPES), X, key=KEY)
    names, message = wrong_names(MLP_AXES | {"w3": ("b", "out"), "b3": ("out",)}, classes)
    assert names == {"out"}
    assert re.search(r"[1-4] of 4 entries of output 'class' differ", message)


def test_every_output_is_compared():
    def outputs(params, x):
        return [mlp(params, x), (params["b1"] * 1e-6, None), jax.random.key(0)]

    names, message = wrong_names(MLP_AXES, outputs)
    assert names == {"a"}
    assert "output '1/0' changes" in message


def test_outputs_that_are_zero_up_to_rounding_do_not_count():
    check_spec(lambda p: jax.nn.softmax(p["w"]).sum() - 1, {"w": ("n",)}, init(w=(50,)), key=KEY)


def test_outputs_that_are_not_finite_are_another_error():
    with pytest.raises(ValueError, match=r"must be finite.*1 of 1 entries of output '0'") as caught:
        check_spec(lambda p: [jnp.log(-jnp.exp(p["w"]).sum())], {"w": ("n",)}, init(w=(5,)), key=KEY)
    assert not isinstance(caught.value, SpecError)


def test_functions_that_insist_on_float32():
    def scanned(params, xs):
        def step(h, x):
            return jnp.tanh(x @ params["in"] + h @ params["w"]), None

        start = jnp.zeros(5, jnp.float32)  # a carry must keep its type
        return jax.lax.scan(step, start, xs)[0] @ params["out"]

    params = init(**{"in": (3, 5), "w": (5, 5), "out": (5, 2)})
    axes = {"in": (None, "h"), "w": ("h", "h"), "out": ("h", None)}
    with jax.enable_x64(True), pytest.raises(TypeError, match="carry"):
        scanned(jax.tree.map(lambda x: x.astype(np.float64), params), X)
    check_spec(scanned, axes, params, X, key=KEY)
    assert wrong_names(axes | {"out": ("other", None)}, scanned, params)[0] == {"h", "other"}


def test_warnings_about_float64_stay_inside():
    def updated(params, x):
        table = jnp.zeros((5,), jnp.float32).at[jnp.arange(5)].add(params["w"])  # warns if w is float64
        return jnp.tanh(x @ params["in"]) @ table

    params = init(**{"in": (3, 5), "w": (5,)})
    with jax.enable_x64(True), pytest.warns(FutureWarning, match="incompatible types"):
        updated(jax.tree.map(lambda x: x.astype(np.float64), params), X)
    check_spec(updated, {"in": (None, None), "w": (None,)}, params, X, key=KEY)


def test_low_precision_inside_the_function_sets_the_tolerance():
    def predict(params, x):
        return mlp(jax.tree.map(lambda p: p.astype(jnp.bfloat16), params), x.astype(jnp.bfloat16)).astype(jnp.float32)

    check_spec(jax.jit(predict), MLP_AXES, init(**MLP_SHAPES), X, key=KEY)
    assert wrong_names(MLP_AXES | {"b2": ("own",)}, jax.jit(predict))[0] == {"own", "b"}
    assert "tolerance 8.8e-02" in wrong_names(MLP_AXES | {"b2": ("own",)}, predict)[1]
    assert "tolerance 1.0e-06" in wrong_names(MLP_AXES | {"b2": ("own",)}, predict, rtol=1e-6)[1]


def test_arguments_that_are_not_arrays_are_constants():
    def predict(params, x, train, scale):
        return mlp(params, x) if train else scale["by"] * mlp(params, x)

    check_spec(predict, MLP_AXES, init(**MLP_SHAPES), X, False, {"by": 2.0}, key=KEY)


def test_the_function_is_traced_once():
    traces = []

    def counted(params, x):
        traces.append(None)
        return mlp(params, x)

    check_spec(counted, MLP_AXES, init(**MLP_SHAPES), X, key=KEY, trials=4)
    assert len(traces) == 1


def test_names_of_inputs_and_outputs_can_be_skipped():
    axes = MLP_AXES | {"w1": ("in", "a"), "w3": ("b", "out"), "b3": ("out",)}
    check_spec(mlp, axes, init(**MLP_SHAPES), X, key=KEY, skip=("in", "out"))
    assert wrong_names(axes, skip=("in",))[0] == {"out"}


def test_a_spec_may_be_inferred():
    check_spec(mlp, Inferred(mlp, X), init(**MLP_SHAPES), X, key=KEY)
    with pytest.raises(SpecError):
        check_spec(mlp, Inferred(mlp, X), init(**MLP_SHAPES), X, key=KEY, skip=())


def dropout(params, x, key):
    h = jnp.tanh(x @ params["a"])
    h = jnp.tanh(h * jax.random.bernoulli(key, 0.5, h.shape) @ params["b"])
    return h @ params["c"]


def jitter(params, x, key):
    return jnp.tanh(x @ (params["a"] + jax.random.normal(key, params["a"].shape))) @ params["b"] @ params["c"]


def convolve(params, x, key):
    kernel = params["a"].reshape(3, 1, 5)
    y = jax.lax.conv_general_dilated(x[..., None], kernel, (1,), "SAME", dimension_numbers=("NHC", "HIO", "NHC"))
    return jnp.tanh(jax.nn.relu(y).mean(1) @ params["b"]) @ params["c"]


@pytest.mark.parametrize(
    ("fn", "mode", "let_in", "checked"),
    [
        (dropout, {"noise": "permute"}, {"a:1"}, {"b:1"}),
        (jitter, {"noise": "permute"}, {"a:1"}, {"b:1"}),
        (convolve, {"spatial": "permute"}, {"a:0"}, {"a:1", "b:1"}),
    ],
)
def test_names_that_a_mode_let_in_are_not_checked(fn, mode, let_in, checked):
    params = init(a=(3, 5), b=(5, 4), c=(4, 2))
    for spec in (infer_spec(fn, params, X, KEY, **mode), Inferred(fn, X, KEY, **({"io": "fixed"} | mode))):
        check_spec(fn, spec, params, X, KEY, key=KEY)
    spec = infer_spec(fn, params, X, KEY, **mode)
    assert set(spec.noise + spec.spatial) == let_in
    assert let_in | checked <= set(spec.sizes)
    with pytest.raises(SpecError) as caught:
        check_spec(fn, spec, params, X, KEY, key=KEY, skip=())
    assert set(caught.value.names) == let_in
    broken = make_spec({leaf.path: leaf.axes for leaf in spec.leaves} | {"c": ("own", None)}, params)
    broken = dataclasses.replace(broken, noise=spec.noise, spatial=spec.spatial)
    with pytest.raises(SpecError) as caught:
        check_spec(fn, broken, params, X, KEY, key=KEY)
    assert "own" in caught.value.names


def test_the_table_says_which_names_a_mode_let_in():
    spec = infer_spec(dropout, init(a=(3, 5), b=(5, 4), c=(4, 2)), X, KEY, io="permute", noise="permute")
    lines = str(spec).splitlines()
    assert "'a:0'  3     a[0]; data or output" in lines
    assert "'a:1'  5     a[1], b[0]; random draws" in lines


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"skip": ["c"]}, "must have names of the spec, but has 'c'; the spec has 'a', 'b'"),
        ({"trials": 0}, "trials must be at least 1, but is 0"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        check_spec(mlp, MLP_AXES, init(**MLP_SHAPES), X, key=KEY, **options)


def test_parameters_that_do_not_fit():
    params = init(**MLP_SHAPES)
    spec = make_spec(MLP_AXES, params)
    with pytest.raises(ValueError, match="lacks 'b1'"):
        check_spec(mlp, spec, {k: v for k, v in params.items() if k != "b1"}, X, key=KEY)
    with pytest.raises(ValueError, match=r"Leaf 'b1' must have a shape that starts with \(5,\)"):
        check_spec(mlp, spec, params | {"b1": jnp.zeros(4)}, X, key=KEY)
    with pytest.raises(TypeError, match="dot_general"):
        check_spec(mlp, spec, params, X[:, :2], key=KEY)
