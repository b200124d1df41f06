"""Attention, recurrence and stacked layers in flax.nnx."""

import jax.numpy as jnp
from flax import nnx
from zoo import Case
from zoo_arrays import cross_entropy, normal, tokens
from zoo_nnx import dense, nnx_function, scaled

from optax_unf import Concat


def attention(d, heads="heads", qk="qk", v="v"):
    projection = {"kernel": (d, heads, qk), "bias": (heads, qk)}
    return {
        "query": projection,
        "key": projection,
        "value": {"kernel": (d, heads, v), "bias": (heads, v)},
        "out": {"kernel": (heads, v, d), "bias": (d,)},
    }


def nnx_encoder():
    class Block(nnx.Module):
        def __init__(self, rngs):
            self.norm_a, self.norm_b = nnx.LayerNorm(6, rngs=rngs), nnx.LayerNorm(6, rngs=rngs)
            self.attention = nnx.MultiHeadAttention(3, 6, qkv_features=12, decode=False, rngs=rngs)
            self.up, self.down = nnx.Linear(6, 10, rngs=rngs), nnx.Linear(10, 6, rngs=rngs)

        def __call__(self, x):
            x = x + self.attention(self.norm_a(x))
            return x + self.down(nnx.gelu(self.up(self.norm_b(x))))

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.embed = nnx.Linear(2, 6, rngs=rngs)
            self.positions = nnx.Param(jnp.zeros((5, 6)))
            self.blocks = nnx.List([Block(rngs), Block(rngs)])
            self.norm, self.out = nnx.LayerNorm(6, rngs=rngs), nnx.Linear(6, 7, rngs=rngs)

        def __call__(self, x):
            x = self.embed(x) + self.positions
            for block in self.blocks:
                x = block(x)
            return self.out(self.norm(x).mean(1))

    def block(i):
        return {
            "norm_a": scaled("d"),
            "attention": attention("d", f"heads{i}", f"qk{i}", f"v{i}"),
            "norm_b": scaled("d"),
            "up": dense("d", f"m{i}"),
            "down": dense(f"m{i}", "d"),
        }

    fn, params = nnx_function(Model)
    axes = {
        "embed": dense(None, "d"),
        "positions": (None, "d"),
        "blocks": [block(0), block(1)],
        "norm": scaled("d"),
        "out": dense("d", None),
    }
    return Case(fn, params, (normal(2, 5, 2),), axes)


def nnx_decoder():
    """A causal mask fixes no axis of a parameter; tied embeddings are one leaf, whose vocabulary is fixed."""

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.embed = nnx.Embed(7, 6, rngs=rngs)
            self.positions = nnx.Param(jnp.zeros((5, 6)))
            self.norm_a, self.norm_b = nnx.RMSNorm(6, rngs=rngs), nnx.RMSNorm(6, rngs=rngs)
            self.attention = nnx.MultiHeadAttention(
                2, 6, qkv_features=8, normalize_qk=True, use_bias=False, decode=False, rngs=rngs
            )
            self.up, self.down = nnx.Linear(6, 9, rngs=rngs), nnx.Linear(9, 6, rngs=rngs)

        def __call__(self, ids):
            x = self.embed(ids) + self.positions
            x = x + self.attention(self.norm_a(x), mask=nnx.make_causal_mask(ids))
            x = x + self.down(nnx.relu(self.up(self.norm_b(x))))
            return cross_entropy(self.embed.attend(x)[:, :-1], ids[:, 1:])

    fn, params = nnx_function(Model)
    axes = {
        "embed": {"embedding": (None, "d")},
        "positions": (None, "d"),
        "norm_a": {"scale": ("d",)},
        "norm_b": {"scale": ("d",)},
        "attention": {
            "query": {"kernel": ("d", "heads", "qk")},
            "key": {"kernel": ("d", "heads", "qk")},
            "value": {"kernel": ("d", "heads", "v")},
            "out": {"kernel": ("heads", "v", "d")},
            "query_ln": {"scale": ("qk",)},
            "key_ln": {"scale": ("qk",)},
        },
        "up": dense("d", "m"),
        "down": dense("m", "d"),
    }
    return Case(fn, params, (tokens(2, 5, vocabulary=7),), axes)


def nnx_recurrent(cell, cell_axes):
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.rnn, self.out = nnx.RNN(cell(3, 5, rngs=rngs)), nnx.Linear(5, 2, rngs=rngs)

        def __call__(self, x):
            return self.out(self.rnn(x))

    fn, params = nnx_function(Model)
    return Case(fn, params, (normal(2, 4, 3),), {"rnn": {"cell": cell_axes}, "out": dense("h", None)})


def nnx_lstm():
    inputs = {f"i{gate}": {"kernel": (None, "h")} for gate in ("i", "f_", "g", "o")}
    return nnx_recurrent(nnx.LSTMCell, inputs | {f"h{gate}": dense("h", "h") for gate in "ifgo"})


def nnx_optimized_lstm():
    gates = (None, "h")
    return nnx_recurrent(nnx.OptimizedLSTMCell, {"dense_i": {"kernel": (None, gates)}, "dense_h": dense("h", gates)})


def nnx_gru():
    gates = (None, "h")
    return nnx_recurrent(nnx.GRUCell, {"dense_i": dense(None, gates), "dense_h": {"kernel": ("h", gates)}})


def nnx_simple_rnn():
    return nnx_recurrent(nnx.SimpleCell, {"dense_i": dense(None, "h"), "dense_h": {"kernel": ("h", "h")}})


def nnx_bidirectional():
    class Model(nnx.Module):
        def __init__(self, rngs):
            forward, backward = nnx.GRUCell(3, 4, rngs=rngs), nnx.SimpleCell(3, 5, rngs=rngs)
            self.rnn = nnx.Bidirectional(nnx.RNN(forward), nnx.RNN(backward))
            self.out = nnx.Linear(9, 2, rngs=rngs)

        def __call__(self, x):
            return self.out(self.rnn(x))

    fn, params = nnx_function(Model)
    gates = (None, "forward")
    axes = {
        "rnn": {
            "forward_rnn": {"cell": {"dense_i": dense(None, gates), "dense_h": {"kernel": ("forward", gates)}}},
            "backward_rnn": {
                "cell": {"dense_i": dense(None, "backward"), "dense_h": {"kernel": ("backward", "backward")}}
            },
        },
        "out": dense(Concat("forward", "backward"), None),
    }
    return Case(fn, params, (normal(2, 4, 3),), axes)


def nnx_swiglu():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.embed, self.norm = nnx.Linear(3, 5, rngs=rngs), nnx.RMSNorm(5, rngs=rngs)
            self.gate, self.up = nnx.Linear(5, 7, rngs=rngs), nnx.Linear(5, 7, use_bias=False, rngs=rngs)
            self.down, self.out = nnx.Linear(7, 5, rngs=rngs), nnx.Linear(5, 2, rngs=rngs)

        def __call__(self, x):
            x = self.embed(x)
            y = self.norm(x)
            return self.out(x + self.down(nnx.silu(self.gate(y)) * self.up(y)))

    fn, params = nnx_function(Model)
    axes = {
        "embed": dense(None, "d"),
        "norm": {"scale": ("d",)},
        "gate": dense("d", "m"),
        "up": {"kernel": ("d", "m")},
        "down": dense("m", "d"),
        "out": dense("d", None),
    }
    return Case(fn, params, (normal(4, 3),), axes)


def nnx_scan():
    """Layers on a leading axis, applied in order: it is fixed, and what every layer has of its own has one name."""

    class Layer(nnx.Module):
        def __init__(self, rngs):
            self.norm = nnx.LayerNorm(5, rngs=rngs)
            self.up, self.down = nnx.Linear(5, 7, rngs=rngs), nnx.Linear(7, 5, rngs=rngs)

        def __call__(self, x):
            return x + self.down(nnx.relu(self.up(self.norm(x))))

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.embed, self.out = nnx.Linear(4, 5, rngs=rngs), nnx.Linear(5, 2, rngs=rngs)
            self.layers = nnx.vmap(Layer, in_axes=0)(rngs.split(3))

        def __call__(self, x):
            apply = nnx.scan(lambda x, layer: layer(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
            return self.out(apply(self.embed(x), self.layers))

    fn, params = nnx_function(Model)
    layers = {"norm": scaled("d"), "up": dense("d", "m"), "down": dense("m", "d")}
    axes = {
        "embed": dense(None, "d"),
        "layers": {k: {leaf: (None, *names) for leaf, names in v.items()} for k, v in layers.items()},
        "out": dense("d", None),
    }
    return Case(fn, params, (normal(3, 4),), axes)


def nnx_ensemble():
    """Members under vmap, whose mean is the output, permute. Their hidden units share one name."""

    class Member(nnx.Module):
        def __init__(self, rngs):
            self.a, self.b = nnx.Linear(4, 5, rngs=rngs), nnx.Linear(5, 2, rngs=rngs)

        def __call__(self, x):
            return self.b(nnx.relu(self.a(x)))

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.members = nnx.vmap(Member, in_axes=0)(rngs.split(3))

        def __call__(self, x):
            return nnx.vmap(lambda member, x: member(x), in_axes=(0, None))(self.members, x).mean(0)

    fn, params = nnx_function(Model)
    axes = {
        "members": {
            "a": {"kernel": ("members", None, "h"), "bias": ("members", "h")},
            "b": {"kernel": ("members", "h", None), "bias": ("members", None)},
        }
    }
    return Case(fn, params, (normal(3, 4),), axes)


CASES = (
    nnx_encoder,
    nnx_decoder,
    nnx_lstm,
    nnx_optimized_lstm,
    nnx_gru,
    nnx_simple_rnn,
    nnx_bidirectional,
    nnx_swiglu,
    nnx_scan,
    nnx_ensemble,
)
