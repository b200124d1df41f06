"""Recurrent and graph networks and attention in plain JAX. Kernels are `[in, out]`."""

import jax
import jax.numpy as jnp
from zoo import Case
from zoo_arrays import cross_entropy, normal, tokens
from zoo_plain import random

from optax_unf import Concat

# Recurrent networks.

GATED = {"x": (None, (None, "h")), "h": ("h", (None, "h")), "b": ((None, "h"),), "out": ("h", None)}


def lstm_fused():
    def fn(params, xs):
        def step(carry, x):
            c, h = carry
            i, f, g, o = jnp.split(x @ params["x"] + h @ params["h"] + params["b"], 4, axis=-1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (c, h), h

        start = jnp.zeros((xs.shape[1], 5), xs.dtype)
        return jax.lax.scan(step, (start, start), xs)[1] @ params["out"]

    params = random({"x": (3, 20), "h": (5, 20), "b": (20,), "out": (5, 2)})
    return Case(fn, params, (normal(6, 2, 3),), GATED)


def gru_fused():
    def fn(params, xs):
        def step(h, x):
            xr, xz, xn = jnp.split(x @ params["x"] + params["b"], 3, axis=-1)
            hr, hz, hn = jnp.split(h @ params["h"], 3, axis=-1)
            z = jax.nn.sigmoid(xz + hz)
            return z * h + (1 - z) * jnp.tanh(xn + jax.nn.sigmoid(xr + hr) * hn), None

        return jax.lax.scan(step, jnp.zeros((xs.shape[1], 5), xs.dtype), xs)[0] @ params["out"]

    params = random({"x": (3, 15), "h": (5, 15), "b": (15,), "out": (5, 2)})
    return Case(fn, params, (normal(6, 2, 3),), GATED)


def sequence_to_sequence():
    """One embedding for both sides and the output; the decoder starts from the encoder's last state."""

    def fn(params, source, target):
        def run(cell, h, words):
            def step(h, x):
                h = jnp.tanh(x @ cell["x"] + h @ cell["h"])
                return h, h

            return jax.lax.scan(step, h, params["embed"][words].swapaxes(0, 1))

        start = jnp.zeros((len(source), 5), params["embed"].dtype)
        context, _ = run(params["encoder"], start, source)
        _, states = run(params["decoder"], context, target)
        logits = states.swapaxes(0, 1) @ params["out"] @ params["embed"].T
        return cross_entropy(logits[:, :-1], target[:, 1:])

    cell = {"x": (4, 5), "h": (5, 5)}
    params = random({"embed": (11, 4), "encoder": cell, "decoder": cell, "out": (5, 4)})
    cell = {"x": ("e", "h"), "h": ("h", "h")}
    axes = {"embed": (None, "e"), "encoder": cell, "decoder": cell, "out": ("h", "e")}
    return Case(fn, params, (tokens(2, 6, vocabulary=11), tokens(2, 7, vocabulary=11)), axes)


def language_model_irnn():
    """Recurrent kernel near the identity, ReLU, and a loop in Python."""

    def fn(params, words):
        h = jnp.zeros((words.shape[0], 5))
        logits = []
        for t in range(words.shape[1] - 1):
            h = jax.nn.relu(params["embed"][words[:, t]] @ params["x"] + h @ params["h"] + params["b"])
            logits.append(h @ params["out"])
        return cross_entropy(jnp.stack(logits, axis=1), words[:, 1:])

    params = random({"embed": (11, 4), "x": (4, 5), "h": (5, 5), "b": (5,), "out": (5, 11)})
    params["h"] = 0.1 * params["h"] + jnp.eye(5)
    axes = {"embed": (None, "e"), "x": ("e", "h"), "h": ("h", "h"), "b": ("h",), "out": ("h", None)}
    return Case(fn, params, (tokens(2, 5, vocabulary=11),), axes)


def graph_network():
    """Messages along given edges, summed at their ends, twice; nodes are averaged."""

    def fn(params, nodes, senders, receivers):
        for layer in params["layers"]:
            pairs = jnp.concatenate([nodes[senders], nodes[receivers]], axis=-1)
            messages = jax.nn.relu(pairs @ layer["message"])
            sums = jax.ops.segment_sum(messages, receivers, num_segments=len(nodes))
            nodes = jax.nn.relu(jnp.concatenate([nodes, sums], axis=-1) @ layer["update"])
        return nodes.mean(0) @ params["out"]

    layers = [{"message": (6, 5), "update": (8, 4)}, {"message": (8, 7), "update": (11, 9)}]
    params = random({"layers": layers, "out": (9, 2)})
    first = {"message": (None, "m1"), "update": (Concat(None, "m1"), "n1")}
    second = {"message": ((None, "n1"), "m2"), "update": (Concat("n1", "m2"), "n2")}
    args = (normal(6, 3), tokens(10, vocabulary=6), tokens(10, vocabulary=6)[::-1].copy())
    return Case(fn, params, args, {"layers": [first, second], "out": ("n2", None)})


# Attention. q and k share the name of the head size, because they are contracted; v and out share another.


def attend(q, k, v):
    """Arrays `[heads, time, size]`."""
    return jax.nn.softmax(q @ k.swapaxes(-1, -2) / 2) @ v


def attention_fused_thirds():
    def fn(params, x):
        x = x @ params["in"]
        y = x @ params["qkv"]
        q, k, v = (part.reshape(-1, 2, 4).swapaxes(0, 1) for part in (y[:, :8], y[:, 8:16], y[:, 16:]))
        x = x + attend(q, k, v).swapaxes(0, 1).reshape(-1, 8) @ params["attend"]
        return x @ params["out"]

    params = random({"in": (3, 6), "qkv": (6, 24), "attend": (8, 6), "out": (6, 2)})
    fused = Concat(("heads", "qk"), ("heads", "qk"), ("heads", "v"))
    axes = {"in": (None, "d"), "qkv": ("d", fused), "attend": (("heads", "v"), "d"), "out": ("d", None)}
    return Case(fn, params, (normal(5, 3),), axes, sizes={"heads": 2, "qk": 4})


def attention_fused_reshaped():
    """q, k and v are positions of one axis here, so that head size is one name for all three."""

    def fn(params, x):
        x = x @ params["in"]
        q, k, v = jnp.einsum("td,dchs->chts", x, params["qkv"].reshape(6, 3, 2, 4))
        x = x + attend(q, k, v).swapaxes(0, 1).reshape(-1, 8) @ params["attend"]
        return x @ params["out"]

    params = random({"in": (3, 6), "qkv": (6, 24), "attend": (8, 6), "out": (6, 2)})
    axes = {"in": (None, "d"), "qkv": ("d", (None, "heads", "s")), "attend": (("heads", "s"), "d"), "out": ("d", None)}
    return Case(fn, params, (normal(5, 3),), axes, sizes={"heads": 2, "s": 4})


def attention_multi_query():
    """All heads share one k and one v."""

    def fn(params, x):
        x = x @ params["in"]
        q = jnp.einsum("td,dhs->hts", x, params["q"])
        y = attend(q, x @ params["k"], x @ params["v"])
        return (x + jnp.einsum("htv,hvd->td", y, params["attend"])) @ params["out"]

    params = random({"in": (3, 6), "q": (6, 2, 4), "k": (6, 4), "v": (6, 5), "attend": (2, 5, 6), "out": (6, 7)})
    axes = {"in": (None, "d"), "q": ("d", "heads", "qk"), "k": ("d", "qk"), "v": ("d", "v")}
    return Case(fn, params, (normal(8, 3),), axes | {"attend": ("heads", "v", "d"), "out": ("d", None)})


GROUPED_SHAPES = {"in": (3, 7), "q": (7, 24), "k": (7, 8), "v": (7, 10), "attend": (30, 7), "out": (7, 9)}
GROUPED = {
    "in": (None, "d"),
    "q": ("d", ("kv", "group", "qk")),
    "k": ("d", ("kv", "qk")),
    "v": ("d", ("kv", "v")),
    "attend": (("kv", "group", "v"), "d"),
    "out": ("d", None),
}


def attention_grouped_query():
    """Three heads of q share each of two heads of k and v."""

    def fn(params, x):
        x = x @ params["in"]
        q = (x @ params["q"]).reshape(-1, 2, 3, 4)
        k, v = (x @ params["k"]).reshape(-1, 2, 4), (x @ params["v"]).reshape(-1, 2, 5)
        weights = jax.nn.softmax(jnp.einsum("tkgs,uks->kgtu", q, k))
        y = jnp.einsum("kgtu,ukv->tkgv", weights, v).reshape(-1, 30)
        return (x + y @ params["attend"]) @ params["out"]

    return Case(fn, random(GROUPED_SHAPES), (normal(8, 3),), GROUPED, sizes={"kv": 2, "group": 3})


def attention_grouped_query_repeated():
    """The same with the heads of k and v repeated."""

    def fn(params, x):
        x = x @ params["in"]
        q = (x @ params["q"]).reshape(-1, 6, 4).swapaxes(0, 1)
        k = jnp.repeat((x @ params["k"]).reshape(-1, 2, 4).swapaxes(0, 1), 3, axis=0)
        v = jnp.repeat((x @ params["v"]).reshape(-1, 2, 5).swapaxes(0, 1), 3, axis=0)
        y = attend(q, k, v).swapaxes(0, 1).reshape(-1, 30)
        return (x + y @ params["attend"]) @ params["out"]

    return Case(fn, random(GROUPED_SHAPES), (normal(8, 3),), GROUPED, sizes={"kv": 2, "group": 3})


def rotary(rotate):
    """Rotation fixes the head size of q and k: each pair of positions has a frequency of its own."""

    def fn(params, x):
        x = x @ params["in"]
        angles = jnp.arange(x.shape[0])[:, None] * 10.0 ** -jnp.arange(3.0)
        q = rotate(jnp.einsum("td,dhs->hts", x, params["q"]), jnp.cos(angles), jnp.sin(angles))
        k = rotate(jnp.einsum("td,dhs->hts", x, params["k"]), jnp.cos(angles), jnp.sin(angles))
        y = attend(q, k, jnp.einsum("td,dhs->hts", x, params["v"]))
        return (x + jnp.einsum("htv,hvd->td", y, params["attend"])) @ params["out"]

    shapes = {"in": (3, 7), "q": (7, 2, 6), "k": (7, 2, 6), "v": (7, 2, 5), "attend": (2, 5, 7), "out": (7, 4)}
    axes = {"in": (None, "d"), "q": ("d", "heads", None), "k": ("d", "heads", None), "v": ("d", "heads", "v")}
    return Case(fn, random(shapes), (normal(8, 3),), axes | {"attend": ("heads", "v", "d"), "out": ("d", None)})


def rotary_halves():
    def rotate(x, cos, sin):
        a, b = jnp.split(x, 2, axis=-1)
        return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    return rotary(rotate)


def rotary_interleaved():
    def rotate(x, cos, sin):
        a, b = x[..., ::2], x[..., 1::2]
        return jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(x.shape)

    return rotary(rotate)


CASES = (
    lstm_fused,
    gru_fused,
    sequence_to_sequence,
    language_model_irnn,
    graph_network,
    attention_fused_thirds,
    attention_fused_reshaped,
    attention_multi_query,
    attention_grouped_query,
    attention_grouped_query_repeated,
    rotary_halves,
    rotary_interleaved,
)
