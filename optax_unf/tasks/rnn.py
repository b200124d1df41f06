"""Language modelling of bytes by the recurrent network of the paper."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from optax_unf.tasks.language import LanguageModel
from optax_unf.tasks.task import Params


@dataclasses.dataclass(frozen=True, eq=False)
class RNNTask(LanguageModel):
    """An embedding, one IRNN layer (Le et al. 2015, arXiv:1504.00941: ReLU, recurrence initially the identity), dense.

    The identity adds up what is read, so that the first logits grow along the sequence: the loss at initialization is
    about twice that of a guess, ln 256.

    Attributes:
      embedding: width of the embedding.
      hidden: width of the recurrent layer.
    """

    embedding: int = 64
    hidden: int = 128

    @property
    def axes(self) -> dict[str, Any]:
        """Names of the axes; the bytes read and the bytes predicted are the same."""
        return {
            "embedding": ("byte", "embedding"),
            "recurrent": {"input": ("embedding", "hidden"), "kernel": ("hidden", "hidden"), "bias": ("hidden",)},
            "out": {"kernel": ("hidden", "byte"), "bias": ("byte",)},
        }

    def init(self, key: Array) -> Params:
        """Embeddings of unit variance, kernels with variance 1 / fan-in, the identity, zero biases."""
        keys = jax.random.split(key, 3)
        kernel = jax.nn.initializers.variance_scaling(1.0, "fan_in", "normal")
        return {
            "embedding": jax.random.normal(keys[0], (self.vocabulary, self.embedding)),
            "recurrent": {
                "input": kernel(keys[1], (self.embedding, self.hidden)),
                "kernel": jnp.eye(self.hidden),
                "bias": jnp.zeros(self.hidden),
            },
            "out": {"kernel": kernel(keys[2], (self.hidden, self.vocabulary)), "bias": jnp.zeros(self.vocabulary)},
        }

    def predict(self, params: Params, tokens: Int[Array, "batch length"]) -> Float[Array, "batch length vocabulary"]:
        """Logits of each next byte."""
        layer, out = params["recurrent"], params["out"]
        # What the bytes bring is the same at each step, so it is computed once for each byte.
        inputs = (params["embedding"] @ layer["input"] + layer["bias"])[tokens.T]

        def step(state: Array, x: Array) -> tuple[Array, Array]:
            state = jax.nn.relu(x + state @ layer["kernel"])
            return state, state

        start = jnp.zeros((len(tokens), self.hidden), inputs.dtype)
        _, states = jax.lax.scan(step, start, inputs)
        return states.swapaxes(0, 1) @ out["kernel"] + out["bias"]
