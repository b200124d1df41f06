"""Models in equinox. Kernels are `[out, in, *spatial]`; static parts of a module are empty subtrees."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from zoo import Case
from zoo_arrays import filled, normal, tokens


def eqx_function(make, call=lambda model, x: model(x)):
    """The value of a module at a batch of inputs as a function of its arrays, and these."""
    model = filled(eqx.filter_eval_shape(make, jax.random.key(0)))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    return lambda params, x: jax.vmap(lambda x: call(eqx.combine(params, static), x))(x), params


def weights(i, o):
    return {"weight": (o, i), "bias": (o,)}


def conv_weights(i, o):
    return {"weight": (o, i, None, None), "bias": (o, None, None)}


def affine(d):
    return {"weight": (d,), "bias": (d,)}


def eqx_attention_axes(d_in, d_out, qk="qk"):
    """Projections to `[heads * size]` without biases."""
    return {
        "query_proj": {"weight": (("heads", qk), d_in)},
        "key_proj": {"weight": (("heads", qk), d_in)},
        "value_proj": {"weight": (("heads", "v"), d_in)},
        "output_proj": {"weight": (d_out, ("heads", "v"))},
    }


def eqx_mlp():
    fn, params = eqx_function(lambda key: eqx.nn.MLP(4, 3, 6, 2, key=key))
    axes = {"layers": [weights(None, "a"), weights("a", "b"), weights("b", None)]}
    return Case(fn, params, (normal(2, 4),), axes)


def eqx_cnn():
    def model(key):
        layers = [
            eqx.nn.Conv2d(2, 4, 3, padding=1, key=key),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.MaxPool2d(2, 2),
            eqx.nn.Conv2d(4, 5, 3, padding=1, key=key),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.Lambda(jnp.ravel),
            eqx.nn.Linear(20, 3, key=key),
        ]
        return eqx.nn.Sequential(layers)

    fn, params = eqx_function(model)
    # Channels come first, before the pixels.
    axes = {
        "layers": {
            "0": conv_weights(None, "a"),
            "3": conv_weights("a", "b"),
            "6": weights(("b", None), None),
        }
    }
    return Case(fn, params, (normal(2, 2, 4, 4),), axes)


def eqx_group_norm():
    class Model(eqx.Module):
        stem: eqx.nn.Conv2d
        norm: eqx.nn.GroupNorm
        conv: eqx.nn.Conv2d
        head: eqx.nn.Linear

        def __init__(self, key):
            self.stem = eqx.nn.Conv2d(2, 6, 3, padding=1, key=key)
            self.norm = eqx.nn.GroupNorm(3, 6)
            self.conv = eqx.nn.Conv2d(6, 6, 3, padding=1, key=key)
            self.head = eqx.nn.Linear(6, 4, key=key)

        def __call__(self, x):
            x = self.stem(x)
            x = x + self.conv(jax.nn.relu(self.norm(x)))
            return self.head(x.mean((1, 2)))

    fn, params = eqx_function(Model)
    d = ("groups", "within")
    axes = {"stem": conv_weights(None, d), "norm": affine(d), "conv": conv_weights(d, d), "head": weights(d, None)}
    return Case(fn, params, (normal(2, 2, 4, 4),), axes, sizes={"groups": 3})


def eqx_recurrent(cell, state):
    class Model(eqx.Module):
        cell: eqx.Module
        head: eqx.nn.Linear

        def __call__(self, xs):
            final, _ = jax.lax.scan(lambda carry, x: (self.cell(x, carry), None), state, xs)
            return self.head(jax.tree.leaves(final)[0])

    return eqx_function(lambda key: Model(cell(3, 5, key=key), eqx.nn.Linear(5, 2, key=key)))


def eqx_lstm():
    fn, params = eqx_recurrent(eqx.nn.LSTMCell, (jnp.zeros(5), jnp.zeros(5)))
    gates = (None, "h")
    cell = {"weight_ih": (gates, None), "weight_hh": (gates, "h"), "bias": (gates,)}
    return Case(fn, params, (normal(2, 4, 3),), {"cell": cell, "head": weights("h", None)})


def eqx_gru():
    fn, params = eqx_recurrent(eqx.nn.GRUCell, jnp.zeros(5))
    gates = (None, "h")
    cell = {"weight_ih": (gates, None), "weight_hh": (gates, "h"), "bias": (gates,), "bias_n": ("h",)}
    return Case(fn, params, (normal(2, 4, 3),), {"cell": cell, "head": weights("h", None)})


def eqx_attention():
    def model(key):
        return eqx.nn.MultiheadAttention(
            3, 8, qk_size=4, vo_size=5, output_size=7, use_query_bias=True, use_output_bias=True, key=key
        )

    fn, params = eqx_function(model, lambda model, x: model(x, x, x))
    axes = eqx_attention_axes(None, None)
    axes["query_proj"] |= {"bias": (("heads", "qk"),)}
    axes["output_proj"] |= {"bias": (None,)}
    return Case(fn, params, (normal(2, 6, 8),), axes, sizes={"heads": 3})


def eqx_rotary():
    """Every pair of a head's positions turns at its own rate: the head size of q and k is fixed."""
    rotary = eqx.nn.RotaryPositionalEmbedding(4)

    def turn(q, k, v):
        turned = jax.vmap(rotary, in_axes=1, out_axes=1)
        return turned(q), turned(k), v

    def model(key):
        return eqx.nn.MultiheadAttention(3, 8, qk_size=4, vo_size=5, output_size=7, key=key)

    fn, params = eqx_function(model, lambda model, x: model(x, x, x, process_heads=turn))
    return Case(fn, params, (normal(2, 6, 8),), eqx_attention_axes(None, None, qk=None), sizes={"heads": 3})


def eqx_transformer():
    class Model(eqx.Module):
        embed: eqx.nn.Embedding
        positions: jax.Array
        norm_a: eqx.nn.LayerNorm
        attention: eqx.nn.MultiheadAttention
        norm_b: eqx.nn.LayerNorm
        mlp: eqx.nn.MLP
        head: eqx.nn.Linear

        def __init__(self, key):
            self.embed = eqx.nn.Embedding(7, 6, key=key)
            self.positions = jnp.zeros((5, 6))
            self.norm_a, self.norm_b = eqx.nn.LayerNorm(6), eqx.nn.LayerNorm(6)
            self.attention = eqx.nn.MultiheadAttention(2, 6, qk_size=4, vo_size=5, key=key)
            self.mlp = eqx.nn.MLP(6, 6, 9, 1, activation=jax.nn.gelu, key=key)
            self.head = eqx.nn.Linear(6, 7, key=key)

        def __call__(self, ids):
            x = jax.vmap(self.embed)(ids) + self.positions
            y = jax.vmap(self.norm_a)(x)
            x = x + self.attention(y, y, y, mask=np.tril(np.ones((5, 5), bool)))
            x = x + jax.vmap(self.mlp)(jax.vmap(self.norm_b)(x))
            return jax.vmap(self.head)(x)

    fn, params = eqx_function(Model)
    axes = {
        "embed": {"weight": (None, "d")},
        "positions": (None, "d"),
        "norm_a": affine("d"),
        "attention": eqx_attention_axes("d", "d"),
        "norm_b": affine("d"),
        "mlp": {"layers": [weights("d", "m"), weights("m", "d")]},
        "head": weights("d", None),
    }
    return Case(fn, params, (tokens(2, 5, vocabulary=7),), axes, sizes={"heads": 2})


CASES = (
    eqx_mlp,
    eqx_cnn,
    eqx_group_norm,
    eqx_lstm,
    eqx_gru,
    eqx_attention,
    eqx_rotary,
    eqx_transformer,
)
