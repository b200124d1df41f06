"""Recurrent networks and Transformers in flax.linen. Kernels are `[*spatial, in, out]`."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from zoo import Case
from zoo_arrays import cross_entropy, filled, normal, tokens
from zoo_linen import dense, linen_case, scaled

from optax_unf import Concat

# Recurrent networks. Kernels of the state have no bias where those of the input have one, or the other way round.


def recurrent(cell, axes, args=None):
    class Model(nn.Module):
        @nn.compact
        def __call__(self, xs):
            return nn.Dense(2, name="out")(nn.RNN(cell, name="rnn")(xs))

    return linen_case(Model(), args or (normal(2, 4, 3),), {"params": {"rnn": {"cell": axes}, "out": dense("h", None)}})


def kernel(i, o):
    return {"kernel": (i, o)}


X, H, H_FREE = dense(None, "h"), dense("h", "h"), kernel("h", "h")
LSTM = {f"i{g}": kernel(None, "h") for g in "ifgo"} | {f"h{g}": H for g in "ifgo"}


def linen_rnn_elman():
    return recurrent(nn.SimpleCell(5, parent=None), {"i": X, "h": H_FREE})


def linen_rnn_lstm_optimized():
    return recurrent(nn.OptimizedLSTMCell(5, parent=None), LSTM)


def linen_rnn_lstm():
    return recurrent(nn.LSTMCell(5, parent=None), LSTM)


def linen_rnn_gru():
    return recurrent(nn.GRUCell(5, parent=None), {"ir": X, "iz": X, "in": X, "hr": H_FREE, "hz": H_FREE, "hn": H})


def linen_rnn_mgu():
    return recurrent(nn.MGUCell(5, parent=None), {"if": X, "in": X, "hf": H_FREE, "hn": H})


def linen_rnn_bidirectional():
    """Both directions side by side."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, xs):
            forward, backward = nn.RNN(nn.SimpleCell(5, name="forward")), nn.RNN(nn.SimpleCell(7, name="backward"))
            return nn.Dense(2, name="out")(nn.Bidirectional(forward, backward)(xs))

    def cell(h):
        return {"i": dense(None, h), "h": kernel(h, h)}

    axes = {"forward": cell("f"), "backward": cell("b"), "out": dense(Concat("f", "b"), None)}
    return linen_case(Model(), (normal(2, 4, 3),), {"params": axes})


def linen_rnn_convolutional():
    """The four gates of each channel stand side by side in the output channels of both kernels."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, xs):
            states = nn.RNN(nn.ConvLSTMCell(5, (2, 2), name="cell"))(xs)
            return nn.Dense(2, name="out")(states.mean((2, 3)))

    gates = (None, "h")
    cell = {
        "ih": {"kernel": (None, None, None, gates), "bias": (gates,)},
        "hh": {"kernel": (None, None, "h", gates), "bias": (gates,)},
    }
    return linen_case(Model(), (normal(2, 4, 3, 3, 6),), {"params": {"cell": cell, "out": dense("h", None)}})


# Attention. q and k share the name of the head size, because they are contracted; v and out share another.


def attention(d, heads="heads", qk="qk", v="v", memory=None):
    """Axes of `nn.MultiHeadDotProductAttention`; `memory` is what keys and values are made from."""

    def projection(i, size):
        return {"kernel": (i, heads, size), "bias": (heads, size)}

    return {
        "query": projection(d, qk),
        "key": projection(memory or d, qk),
        "value": projection(memory or d, v),
        "out": {"kernel": (heads, v, d), "bias": (d,)},
    }


def layer_names(i):
    return {"heads": f"heads_{i}", "qk": f"qk_{i}", "v": f"v_{i}"}


class MLP(nn.Module):
    hidden: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(x.shape[-1], name="out")(nn.gelu(nn.Dense(self.hidden, name="in")(x)))


def feed_forward(d, h):
    return {"in": dense(d, h), "out": dense(h, d)}


class Encoder(nn.Module):
    """Normalization first, then attention without a mask."""

    depth: int = 2

    @nn.compact
    def __call__(self, x):
        for i in range(self.depth):
            y = nn.LayerNorm(name=f"norm_a{i}")(x)
            x = x + nn.MultiHeadDotProductAttention(2, qkv_features=8, name=f"attend_{i}")(y)
            x = x + MLP(5 + 2 * i, name=f"mlp_{i}")(nn.LayerNorm(name=f"norm_b{i}")(x))
        return nn.LayerNorm(name="norm")(x)


def encoder(d, depth=2):
    axes = {"norm": scaled(d)}
    for i in range(depth):
        axes |= {f"attend_{i}": attention(d, **layer_names(i)), f"mlp_{i}": feed_forward(d, f"mlp_{i}")}
        axes |= {f"norm_a{i}": scaled(d), f"norm_b{i}": scaled(d)}
    return axes


def linen_transformer_encoder():
    """Two blocks. Positions are fixed by their embeddings, not by attention."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, words):
            x = nn.Embed(11, 6, name="embed")(words)
            x = x + self.param("positions", nn.initializers.normal(), (words.shape[1], 6))
            return nn.Dense(3, name="out")(Encoder(name="encoder")(x).mean(1))

    axes = {"embed": {"embedding": (None, "d")}, "positions": (None, "d"), "encoder": encoder("d")}
    return linen_case(Model(), (tokens(2, 5, vocabulary=11),), {"params": axes | {"out": dense("d", None)}})


def linen_transformer_decoder():
    """A causal mask, normalization last, and logits from the embedding itself."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, words):
            embed = nn.Embed(11, 6, name="embed")
            x = embed(words)
            y = nn.MultiHeadDotProductAttention(2, qkv_features=8, name="attend")(x, mask=nn.make_causal_mask(words))
            x = nn.LayerNorm(name="norm_a")(x + y)
            x = nn.LayerNorm(name="norm_b")(x + MLP(5, name="mlp")(x))
            return embed.attend(x)

    words = tokens(2, 5, vocabulary=11)
    model = Model()
    params = filled(jax.eval_shape(model.init, jax.random.key(0), words))
    axes = {"embed": {"embedding": (None, "d")}, "attend": attention("d"), "mlp": feed_forward("d", "h")}
    axes |= {"norm_a": scaled("d"), "norm_b": scaled("d")}

    def fn(params, words):
        return cross_entropy(model.apply(params, words)[:, :-1], words[:, 1:])

    return Case(fn, params, (words,), {"params": axes})


def linen_transformer_cross_attention():
    """The decoder's keys and values are made from the encoder's stream, which has a width of its own."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, source, target):
            memory = Encoder(1, name="encoder")(nn.Dense(6, name="source")(source))
            x = nn.Dense(7, name="target")(target)
            x = x + nn.MultiHeadDotProductAttention(2, qkv_features=6, name="cross")(x, memory)
            return nn.Dense(4, name="out")(x)

    axes = {"source": dense(None, "m"), "target": dense(None, "d"), "encoder": encoder("m", 1)}
    axes |= {"cross": attention("d", memory="m"), "out": dense("d", None)}
    return linen_case(Model(), (normal(2, 5, 3), normal(2, 4, 2)), {"params": axes})


def linen_vision_transformer():
    """Patches by a convolution, a class token, learned positions."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(6, (2, 2), strides=2, name="patches")(x)
            x = x.reshape(len(x), -1, 6)
            token = self.param("token", nn.initializers.normal(), (1, 1, 6))
            x = jnp.concatenate([jnp.tile(token, (len(x), 1, 1)), x], axis=1)
            x = x + self.param("positions", nn.initializers.normal(), (1, x.shape[1], 6))
            return nn.Dense(4, name="out")(Encoder(1, name="encoder")(x)[:, 0])

    axes = {
        "patches": {"kernel": (None, None, None, "d"), "bias": ("d",)},
        "token": (None, None, "d"),
        "positions": (None, None, "d"),
        "encoder": encoder("d", 1),
        "out": dense("d", None),
    }
    return linen_case(Model(), (normal(2, 4, 4, 3),), {"params": axes})


def linen_mixer():
    """Dense layers over the patches, which keep their places, and over the channels.

    The second bias over the patches has no effect on normalized channels.
    """

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(6, (2, 2), strides=2, name="patches")(x)
            x = x.reshape(len(x), -1, 6)
            y = MLP(5, name="tokens")(nn.LayerNorm(name="norm_a")(x).swapaxes(1, 2))
            x = x + y.swapaxes(1, 2)
            x = x + MLP(7, name="channels")(nn.LayerNorm(name="norm_b")(x))
            return nn.Dense(8, name="out")(nn.LayerNorm(name="norm")(x).mean(1))

    axes = {
        "patches": {"kernel": (None, None, None, "d"), "bias": ("d",)},
        "norm": scaled("d"),
        "norm_a": scaled("d"),
        "tokens": feed_forward(None, "t"),
        "norm_b": scaled("d"),
        "channels": feed_forward("d", "c"),
        "out": dense("d", None),
    }
    return linen_case(Model(), (normal(2, 4, 4, 3),), {"params": axes})


CASES = (
    linen_rnn_elman,
    linen_rnn_lstm_optimized,
    linen_rnn_lstm,
    linen_rnn_gru,
    linen_rnn_mgu,
    linen_rnn_bidirectional,
    linen_rnn_convolutional,
    linen_transformer_encoder,
    linen_transformer_decoder,
    linen_transformer_cross_attention,
    linen_vision_transformer,
    linen_mixer,
)
