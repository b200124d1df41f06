"""Weight spaces that the benchmarks share: GPT-2 small, and MLPs of any number of parameters."""

import jax
import jax.numpy as jnp

from optax_unf import make_spec

MODEL, HEADS, HEAD_SIZE, HIDDEN, VOCABULARY, LENGTH = 768, 12, 64, 3072, 50257, 1024


def transformer(blocks=12):
    """Axes and shapes of a GPT-2 of this many blocks: 12 leaves a block, and 4."""
    sizes = {"model": MODEL, "vocabulary": VOCABULARY, "position": LENGTH}
    axes = {"wte": ("vocabulary", "model"), "wpe": ("position", "model"), "norm": {"scale": ("model",), "bias": ("model",)}}
    for block in range(blocks):
        heads, qk, v, hidden = (f"{name}_{block}" for name in ("heads", "query_key", "value", "hidden"))
        sizes |= {heads: HEADS, qk: HEAD_SIZE, v: HEAD_SIZE, hidden: HIDDEN}
        fused = _concat((heads, qk), (heads, qk), (heads, v))
        axes[f"block_{block}"] = {
            "norm_1": {"scale": ("model",), "bias": ("model",)},
            "attention": {"kernel": ("model", fused), "bias": (fused,)},
            "projection": {"kernel": ((heads, v), "model"), "bias": ("model",)},
            "norm_2": {"scale": ("model",), "bias": ("model",)},
            "up": {"kernel": ("model", hidden), "bias": (hidden,)},
            "down": {"kernel": (hidden, "model"), "bias": ("model",)},
        }
    return axes, sizes
