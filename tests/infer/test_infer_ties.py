"""Which entries may be equal: an index among those depends on their order, which no name may change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from optax_unf import check_spec, infer_spec

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


X = normal(3, 4)
PARAMS = {"w": normal(4, 6), "v": normal(6, 6), "router": normal(6, 5), "b": normal(5)}


def routed(logits):
    def loss(p, x):
        return jnp.mean(p["b"][jnp.argmax(logits(p, x), -1)])

    return loss


def names_of_leaf(spec, path):
    return next(leaf.axes for leaf in spec.leaves if leaf.path == path)


def by_rows(rows):
    return routed(lambda p, x: rows(x @ p["w"], p) @ p["router"])


MAY_TIE = {
    "relu in map": by_rows(lambda h, p: lax.map(jax.nn.relu, h)),
    "relu in scan": by_rows(lambda h, p: lax.scan(lambda c, r: (c, jax.nn.relu(r)), 0.0, h)[1]),
    "relu in fori_loop": by_rows(lambda h, p: lax.fori_loop(0, 2, lambda i, c: jax.nn.relu(c @ p["v"]), h)),
    "relu in while_loop": by_rows(
        lambda h, p: lax.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, jax.nn.relu(c[1])), (0, h))[1]
    ),
    "relu in cond": by_rows(lambda h, p: lax.cond(h.sum() > 0, jax.nn.relu, jnp.tanh, h)),
    "route in map": lambda p, x: jnp.mean(
        lax.map(lambda r: p["b"][jnp.argmax(jax.nn.relu(r @ p["w"]) @ p["router"])], x)
    ),
    "token shift": by_rows(lambda h, p: jnp.concatenate([jnp.zeros((1, 6)), h[:-1]])),
    "padding": by_rows(lambda h, p: jnp.pad(h, ((0, 2), (0, 0)))),
    "segments": by_rows(lambda h, p: jax.ops.segment_sum(h, jnp.array([0, 2, 2]), 4)),
    "zero state": by_rows(lambda h, p: lax.scan(lambda c, r: (jnp.tanh(c @ p["v"] + r), c), jnp.zeros(6), h)[1]),
    "minus relu": by_rows(lambda h, p: h - jax.nn.relu(h)),
    "soft threshold": by_rows(lambda h, p: h - jnp.clip(h, -9.0, 9.0)),
    "minus itself": by_rows(lambda h, p: h + h - 2 * h),
    "filled": by_rows(lambda h, p: jnp.take(h, jnp.array([0, 7, 1]), 0, mode="fill", fill_value=0)),
    "logits of a relu": routed(lambda p, x: jax.nn.relu(x @ p["w"] @ p["router"])),
    "clipped logits": routed(lambda p, x: jnp.clip(x @ p["w"] @ p["router"], -0.1, 0.1)),
    "logits less their relu": routed(lambda p, x: (y := x @ p["w"] @ p["router"]) - jax.nn.relu(y)),
    "rounded logits": routed(lambda p, x: jnp.round(x @ p["w"] @ p["router"])),
    "short logits": routed(lambda p, x: (x @ p["w"] @ p["router"]).astype(jnp.float8_e4m3fn).astype(jnp.float32)),
    "logarithms of negative logits": routed(lambda p, x: jnp.log(x @ p["w"] @ p["router"])),
    "masked logits": routed(lambda p, x: x @ p["w"] @ p["router"] + jnp.log(jnp.zeros(5))),
    "masked by data": routed(lambda p, x: jnp.where(x[:, :1] > 0, x @ p["w"] @ p["router"], -jnp.inf)),
    "weights of masked rows": by_rows(lambda h, p: jnp.exp(h + jnp.full((3, 6), -jnp.inf))),
    "distance to the mean of two": routed(lambda p, x: jnp.abs(p["b"] - p["b"].mean())),
}


@pytest.mark.parametrize("name", MAY_TIE)
def test_no_name_where_entries_may_be_equal(name):
    spec = infer_spec(MAY_TIE[name], PARAMS, X)
    assert names_of_leaf(spec, "b") == (None,)


def symmetric(pairs):
    def loss(p):
        at = jnp.argmax(pairs(p["q"]).reshape(-1))
        return jnp.sum(p["v"].reshape(-1)[at] ** 2)

    return loss


@pytest.mark.parametrize(
    "pairs",
    [
        lambda q: q @ q.T,
        lambda q: -jnp.sum((q[:, None] - q[None]) ** 2, -1),
        lambda q: jnp.outer(q[:, 0], q[:, 0]),
        lambda q: jnp.abs(q[:, 0, None] - q[None, :, 0]),
        lambda q: q[:, 0, None] + q[None, :, 0],
    ],
    ids=["gram", "distances", "outer", "differences", "sums"],
)
def test_symmetric_products_are_twice_equal(pairs):
    params = {"q": normal(4, 3), "v": normal(4, 4)}
    fn = symmetric(pairs)
    spec = infer_spec(fn, params)
    assert names_of_leaf(spec, "v") == (None, None)
    check_spec(fn, spec, params, key=KEY, trials=20)


@pytest.mark.parametrize(
    "index",
    [
        lambda h: 0 - jnp.argmax(h, -1),
        lambda h: -jnp.argmax(h, -1),
        lambda h: 4 - jnp.argmax(h, -1),
        lambda h: jnp.argmax(h, -1).astype(bool).astype(int),
        lambda h: jnp.argmax(h, -1).astype(jnp.int2).astype(int),
        lambda h: jnp.argsort(-h, -1)[:, 0] ^ 1,
        lambda h: (jnp.argmax(h, -1) * 1.5).astype(int),
    ],
    ids=["0 - i", "-i", "4 - i", "bool", "narrow", "xor", "scaled"],
)
def test_an_index_that_changes_its_meaning(index):
    def loss(p, x):
        return jnp.sum(p["b"][index(x @ p["w"] @ p["router"])])

    spec = infer_spec(loss, PARAMS, X)
    assert names_of_leaf(spec, "b") == (None,)
    check_spec(loss, spec, PARAMS, X, key=KEY, trials=10)


def test_an_index_in_too_narrow_a_type():
    params = {"w": normal(4, 300), "b": normal(300)}

    def loss(dtype):
        return lambda p, x: jnp.sum(p["b"][lax.argmax(x @ p["w"], 1, dtype).astype(int)])

    assert infer_spec(loss(jnp.int8), params, X).sizes == {}
    assert infer_spec(loss(jnp.int16), params, X).sizes == {"b:0": 300}


def block(p, x):
    h = p["embed"][x]
    h = h + jax.nn.relu(h @ p["w"]) @ p["v"]
    h = h + jax.nn.softmax(h @ h.T) @ h @ p["o"]
    return (h - h.mean(-1, keepdims=True)) / jnp.sqrt(h.var(-1, keepdims=True) + 1e-6)


DISTINCT = {
    "biases after a relu": lambda p, x: jax.nn.relu(p["embed"][x] @ p["w"]) @ p["w"].T + p["bias"],
    "Transformer": block,
    "normalized rows": lambda p, x: p["embed"][x] / jnp.linalg.norm(p["embed"][x], axis=-1, keepdims=True),
    "leaky": lambda p, x: jax.nn.leaky_relu(p["embed"][x] @ p["v"]),
    "silu": lambda p, x: jax.nn.silu(p["embed"][x] @ p["v"]),
    "in map": lambda p, x: lax.map(jnp.tanh, p["embed"][x]),
}


@pytest.mark.parametrize("name", DISTINCT)
def test_routers_whose_entries_are_distinct(name):
    """For weights as a mixture of experts has them, without a fault no symmetry is lost."""
    params = {
        "embed": normal(7, 6),
        "w": normal(6, 6),
        "v": normal(6, 6),
        "o": normal(6, 6),
        "bias": normal(6),
        "router": normal(6, 5),
        "experts": normal(5, 6, 2),
    }

    def loss(p, x):
        h = DISTINCT[name](p, x)
        weights, chosen = lax.top_k(jax.nn.softmax(h @ p["router"]), 2)
        return jnp.einsum("tk,tkdo,td->o", weights, p["experts"][chosen], h)

    x = jnp.array([1, 4, 2])
    spec = infer_spec(loss, params, x)
    experts = names_of_leaf(spec, "experts")[0]
    assert experts is not None
    assert names_of_leaf(spec, "router")[1] == experts
    check_spec(loss, spec, params, x, key=KEY)


@pytest.mark.parametrize(
    "nearest",
    [
        lambda z, codes: jnp.argmin(jnp.sum((z[:, None] - codes) ** 2, -1), -1),
        lambda z, codes: jnp.argmin(jnp.sum(z**2, -1)[:, None] - 2 * z @ codes.T + jnp.sum(codes**2, -1), -1),
        lambda z, codes: jnp.argmin(jnp.linalg.norm(z[:, None] - codes, axis=-1), -1),
    ],
    ids=["squared", "expanded", "norm"],
)
@pytest.mark.parametrize("encoded", [True, False], ids=["encoder", "data"])
def test_codes_of_a_quantizer_permute(nearest, encoded):
    params = {"encode": normal(4, 6), "codes": normal(5, 6 if encoded else 4), "decode": normal(6 if encoded else 4, 2)}

    def loss(p, x):
        z = x @ p["encode"] if encoded else x
        return p["codes"][nearest(z, p["codes"])] @ p["decode"] + jnp.sum(p["encode"])

    spec = infer_spec(loss, params, X)
    assert names_of_leaf(spec, "codes")[0] == "codes:0"
    check_spec(loss, spec, params, X, key=KEY)


def test_rows_of_zeros_in_the_data():
    def loss(p, x):
        return jnp.mean(p["b"][jnp.argmax(x @ p["w"] @ p["router"], -1)])

    assert names_of_leaf(infer_spec(loss, PARAMS, X), "b") == ("b:0",)
    padded = X.at[1].set(0.0)
    spec = infer_spec(loss, PARAMS, padded)
    assert names_of_leaf(spec, "b") == (None,)
    check_spec(loss, spec, PARAMS, padded, key=KEY)


def test_a_sort_by_positions_sees_the_order():
    def fn(p):
        return jnp.sum(lax.sort((p["w"], jnp.arange(6)), num_keys=2)[1] * p["v"])

    params = {"w": normal(6), "v": normal(6)}
    check_spec(fn, infer_spec(fn, params), params, key=KEY)
    assert infer_spec(fn, params).sizes == {}
