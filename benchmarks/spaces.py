"""Weight spaces that the benchmarks share: shapes and axes, without any array."""

import itertools

import jax
import jax.numpy as jnp

from optax_unf import Concat, make_spec


def _space(axes, sizes):
    """The spec, and the parameters as shapes, of a nested dict of axes."""

    def size(axis):
        if isinstance(axis, Concat):
            return sum(map(size, axis.parts))
        if isinstance(axis, tuple):
            product = 1
            for factor in axis:
                product *= size(factor)
            return product
        return sizes[axis]

    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(tuple(map(size, leaf)), jnp.float32),
        axes,
        is_leaf=lambda node: isinstance(node, tuple),
    )
    return make_spec(axes, shapes, sizes=sizes), shapes


def gpt2(blocks=12):
    """GPT-2 small (Radford et al. 2019): 124 million parameters, 148 leaves; query, key and value are fused."""
    sizes = {"vocabulary": 50257, "position": 1024, "model": 768}
    norm = {"scale": ("model",), "bias": ("model",)}
    axes = {"wte": ("vocabulary", "model"), "wpe": ("position", "model"), "norm": norm}
    for block in range(blocks):
        heads, qk, v, hidden = (f"{name}_{block}" for name in ("heads", "query_key", "value", "hidden"))
        sizes |= {heads: 12, qk: 64, v: 64, hidden: 3072}
        fused = Concat((heads, qk), (heads, qk), (heads, v))
        axes[f"block_{block}"] = {
            "norm_1": norm,
            "attention": {"kernel": ("model", fused), "bias": (fused,)},
            "projection": {"kernel": ((heads, v), "model"), "bias": ("model",)},
            "norm_2": norm,
            "up": {"kernel": ("model", hidden), "bias": (hidden,)},
            "down": {"kernel": (hidden, "model"), "bias": ("model",)},
        }
    return _space(axes, sizes)


def mlp(*widths):
    """A multi-layer perceptron."""
    sizes = {f"layer_{n}": width for n, width in enumerate(widths)}
    axes = {f"dense_{n}": {"kernel": pair, "bias": pair[1:]} for n, pair in enumerate(itertools.pairwise(sizes))}
    return _space(axes, sizes)


def cnn():
    """The paper's convolutional network, spatial axes named as there."""
    sizes = {"height": 3, "width": 3, "in": 3, "first": 16, "second": 32, "out": 10}
    axes = {
        "conv_1": {"kernel": ("height", "width", "in", "first"), "bias": ("first",)},
        "conv_2": {"kernel": ("height", "width", "first", "second"), "bias": ("second",)},
        "dense": {"kernel": ("second", "out"), "bias": ("out",)},
    }
    return _space(axes, sizes)


def rnn():
    """The paper's recurrent language model of bytes: 74,000 parameters."""
    sizes = {"byte": 256, "embedding": 64, "hidden": 128}
    axes = {
        "embedding": ("byte", "embedding"),
        "input": ("embedding", "hidden"),
        "recurrent": {"kernel": ("hidden", "hidden"), "bias": ("hidden",)},
        "out": {"kernel": ("hidden", "byte"), "bias": ("byte",)},
    }
    return _space(axes, sizes)


def small_transformer(vocabulary=1408):
    """The paper's Transformer, 2 blocks of width 32, with a vocabulary that makes 116,000 parameters."""
    sizes = {"token": vocabulary, "position": 8, "model": 32}
    norm = {"scale": ("model",), "bias": ("model",)}
    axes = {
        "embedding": ("token", "model"),
        "positions": ("position", "model"),
        "norm": norm,
        "out": {"kernel": ("model", "token"), "bias": ("token",)},
    }
    for block in range(2):
        heads, qk, v, hidden = (f"{name}_{block}" for name in ("heads", "query_key", "value", "hidden"))
        sizes |= {heads: 4, qk: 8, v: 8, hidden: 128}
        axes[f"block_{block}"] = {
            "norm_1": norm,
            "query": ("model", heads, qk),
            "key": ("model", heads, qk),
            "value": ("model", heads, v),
            "projection": (heads, v, "model"),
            "norm_2": norm,
            "up": {"kernel": ("model", hidden), "bias": (hidden,)},
            "down": {"kernel": (hidden, "model"), "bias": ("model",)},
        }
    return _space(axes, sizes)
