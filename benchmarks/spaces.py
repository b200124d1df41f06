"""Weight spaces that the benchmarks share: shapes and axes, without any array."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from optax_unf import Concat, make_spec, tasks
from optax_unf.tasks.data.images import Images


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
    """The paper's convolutional network."""
    images = Images(np.zeros((10, 8, 8, 3), np.float32), np.arange(10, dtype=np.int32))
    return _of_task(tasks.CNNTask("cnn", images, images))


def rnn():
    """The paper's recurrent language model of bytes: 74,000 parameters."""
    text = np.zeros(64, np.uint8)
    return _of_task(tasks.RNNTask("rnn", text, text, 256))


def small_transformer(vocabulary=1408):
    """The paper's Transformer, 2 blocks of width 32, with a vocabulary that makes 116,000 parameters."""
    text = np.zeros(64, np.int32)
    return _of_task(tasks.TransformerTask("transformer", text, text, vocabulary))


def _of_task(task):
    return tasks.task_spec(task), jax.eval_shape(task.init, jax.random.key(0))
