"""Language modelling: sequences of tokens and loss, whatever the network."""

import abc
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Integer

from optax_unf.tasks.describe import Description, describe
from optax_unf.tasks.task import Params

Sequences = Int[Array, "batch length+1"]


@dataclasses.dataclass(frozen=True, eq=False)
class LanguageModel(abc.ABC):
    """Cross-entropy of each next token; subclasses say what the network is.

    A batch holds sequences of `length + 1` tokens: all but the last are read, all but the first predicted.

    Attributes:
      name: the task's name.
      train: training tokens.
      test: held-out tokens.
      vocabulary: how many tokens there are.
      source: where the text came from.
      length: tokens that the network reads of each sequence.
      batch_size: sequences per batch.
      horizon: inner steps of one whole inner run.
      held_out_size: sequences of the held-out batch.
    """

    name: str
    train: Integer[np.ndarray, " n"]
    test: Integer[np.ndarray, " m"]
    vocabulary: int
    source: str = ""
    length: int = 32
    batch_size: int = 128
    horizon: int = 2000
    held_out_size: int = 1024

    def __post_init__(self) -> None:
        for part in ("train", "test"):
            tokens = getattr(self, part)
            if len(tokens) <= self.length:
                raise ValueError(
                    f"The {part} text of {self.name} must have more than {self.length} tokens, but has {len(tokens)}."
                )
            if tokens.max() >= self.vocabulary:
                raise ValueError(
                    f"Tokens of {self.name} must be below the vocabulary, {self.vocabulary}, but one is {tokens.max()}."
                )

    @abc.abstractmethod
    def init(self, key: Array) -> Params:
        """Fresh parameters."""

    @abc.abstractmethod
    def predict(self, params: Params, tokens: Int[Array, "batch length"]) -> Float[Array, "batch length vocabulary"]:
        """Logits of each next token."""

    def sample(self, key: Array) -> Sequences:
        """Sequences that start anywhere in the training text."""
        start = jax.random.randint(key, (self.batch_size, 1), 0, len(self.train) - self.length)
        return jnp.asarray(self.train)[start + jnp.arange(self.length + 1)].astype(jnp.int32)

    def held_out(self) -> Sequences:
        """Sequences at equal distances in the held-out text."""
        start = np.linspace(0, len(self.test) - self.length - 1, self.held_out_size).astype(int)
        return jnp.asarray(self.test[start[:, None] + np.arange(self.length + 1)], jnp.int32)

    def loss(self, params: Params, batch: Sequences) -> Float[Array, ""]:
        """Mean cross-entropy of a token, in nats."""
        logits = self.predict(params, batch[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:]).mean()

    def describe(self) -> Description:
        """Sizes, and the work of one step."""
        return describe(self)
