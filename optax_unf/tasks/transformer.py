"""Language modelling by the decoder-only Transformer of the paper."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from optax_unf.tasks.language import LanguageModel
from optax_unf.tasks.task import Params


@dataclasses.dataclass(frozen=True, eq=False)
class TransformerTask(LanguageModel):
    """Blocks of causal attention and a ReLU network, layer normalization before each, learned positions.

    Attributes:
      blocks: how many.
      width: of the residual stream.
      heads: of each attention; their size is `width / heads`.
    """

    length: int = 8
    batch_size: int = 8
    horizon: int = 5000
    blocks: int = 2
    width: int = 32
    heads: int = 4

    @property
    def axes(self) -> dict[str, Any]:
        """Names of the axes: the residual stream; in each block, heads, head sizes and the hidden layer."""
        norm = {"scale": ("model",), "bias": ("model",)}
        axes: dict[str, Any] = {
            "embedding": ("token", "model"),
            "positions": ("position", "model"),
            "norm": norm,
            "out": {"kernel": ("model", "token"), "bias": ("token",)},
        }
        for n in range(self.blocks):
            heads, keys, values, hidden = (f"{name}_{n}" for name in ("heads", "keys", "values", "hidden"))
            axes[f"block_{n}"] = {
                "norm_1": norm,
                "query": ("model", heads, keys),
                "key": ("model", heads, keys),
                "value": ("model", heads, values),
                "projection": (heads, values, "model"),
                "norm_2": norm,
                "up": {"kernel": ("model", hidden), "bias": (hidden,)},
                "down": {"kernel": (hidden, "model"), "bias": ("model",)},
            }
        return axes

    def init(self, key: Array) -> Params:
        """Kernels with variance 1 / fan-in, embeddings and positions with variance 1 / width, zero biases."""
        size = self.width // self.heads
        sizes = {"token": self.vocabulary, "position": self.length, "model": self.width}
        for n in range(self.blocks):
            sizes |= {f"heads_{n}": self.heads, f"keys_{n}": size, f"values_{n}": size, f"hidden_{n}": 4 * self.width}
        paths, treedef = jax.tree.flatten_with_path(self.axes, is_leaf=lambda node: isinstance(node, tuple))
        shapes = [tuple(sizes[name] for name in names) for _, names in paths]
        # One draw for all leaves: a draw for each would take four times as long to compile.
        ends = np.cumsum([math.prod(shape) for shape in shapes])
        draws = jnp.split(jax.random.normal(key, (int(ends[-1]),)), ends[:-1])
        leaves = [
            _fresh(path[-1].key, draw.reshape(shape))
            for (path, _), shape, draw in zip(paths, shapes, draws, strict=True)
        ]
        return treedef.unflatten(leaves)

    def predict(self, params: Params, tokens: Int[Array, "batch length"]) -> Float[Array, "batch length vocabulary"]:
        """Logits of each next token."""
        x = params["embedding"][tokens] + params["positions"][: tokens.shape[1]]
        for n in range(self.blocks):
            block = params[f"block_{n}"]
            x += _attention(block, _norm(block["norm_1"], x))
            hidden = _norm(block["norm_2"], x) @ block["up"]["kernel"] + block["up"]["bias"]
            x += jax.nn.relu(hidden) @ block["down"]["kernel"] + block["down"]["bias"]
        return _norm(params["norm"], x) @ params["out"]["kernel"] + params["out"]["bias"]


def _fresh(name: str, draw: Array) -> Array:
    if name in ("scale", "bias"):
        return jnp.full_like(draw, name == "scale")
    inputs = {"projection": draw.shape[0] * draw.shape[1], "embedding": draw.shape[1], "positions": draw.shape[1]}
    return draw / jnp.sqrt(inputs[name] if name in inputs else draw.shape[0])


def _norm(layer: Params, x: Float[Array, "... width"]) -> Float[Array, "... width"]:
    return jax.nn.standardize(x, epsilon=1e-6) * layer["scale"] + layer["bias"]


def _attention(block: Params, x: Float[Array, "batch length width"]) -> Float[Array, "batch length width"]:
    query, key, value = (jnp.einsum("btm,mhk->bhtk", x, block[name]) for name in ("query", "key", "value"))
    scores = jnp.einsum("bhtk,bhsk->bhts", query, key) / jnp.sqrt(query.shape[-1])
    causal = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    weights = jax.nn.softmax(jnp.where(causal, scores, -jnp.inf))
    return jnp.einsum("bhts,bhsk,hkm->btm", weights, value, block["projection"])
