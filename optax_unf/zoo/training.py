"""Training and testing of many models at once."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from optax_unf.zoo.arithmetic import Questions, make_questions
from optax_unf.zoo.config import Range, ZooConfig
from optax_unf.zoo.seq2seq import Params, Seq2Seq


class Settings(NamedTuple):
    """What differs from model to model in a shard; with an axis of models first where there are many."""

    key: Array
    learning_rate: Float[Array, ""]
    init_scale: Float[Array, ""]
    weight_decay: Float[Array, ""]


class Trained(NamedTuple):
    """A trained model; with an axis of models first where there are many.

    Attributes:
      params: its parameters.
      success_rate: the share of held-out questions that it answers without any error.
      test_loss: the mean cross-entropy of a character of their answers, in nats.
    """

    params: Params
    success_rate: Float[Array, ""]
    test_loss: Float[Array, ""]


def draw_settings(config: ZooConfig, models: Int[Array, " models"]) -> Settings:
    """The settings of models by their numbers: the same whatever is trained beside them."""

    def log_uniform(key: Array, limits: Range) -> Float[Array, ""]:
        low, high = limits
        return low * (high / low) ** jax.random.uniform(key) if low < high else jnp.float32(low)

    def draw(model: Int[Array, ""]) -> Settings:
        keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), model), 4)
        ranges = config.learning_rate, config.init_scale, config.weight_decay
        return Settings(keys[0], *(log_uniform(key, limits) for key, limits in zip(keys[1:], ranges, strict=True)))

    return jax.vmap(draw)(models)


@dataclasses.dataclass(frozen=True)
class Trainer:
    """Trains the models of a zoo by Adam.

    Attributes:
      config: the zoo.
    """

    config: ZooConfig

    @functools.cached_property
    def model(self) -> Seq2Seq:
        """The architecture."""
        return Seq2Seq(self.config.hidden, self.config.cell)

    @functools.cached_property
    def questions(self) -> tuple[Questions, Questions]:
        """For training, and held out."""
        return make_questions(self.config.largest, self.config.held_out)

    def train(self, settings: Settings, batch_size: int, steps: int | Int[Array, ""]) -> Trained:
        """Trains models side by side.

        Args:
          settings: those of each, `[models]`.
          batch_size: questions a step.
          steps: how many; a traced number will do.
        """
        return jax.vmap(lambda one: self._train(one, batch_size, steps))(settings)

    def _train(self, settings: Settings, batch_size: int, steps: int | Int[Array, ""]) -> Trained:
        key_init, key_batches = jax.random.split(settings.key)
        train, test = self.questions
        asked, answers = jnp.asarray(train.asked), jnp.asarray(train.answers)
        adam = optax.scale_by_adam()

        def step(number: Array, carry: tuple[Params, optax.OptState]) -> tuple[Params, optax.OptState]:
            params, state = carry
            rows = jax.random.randint(jax.random.fold_in(key_batches, number), (batch_size,), 0, len(asked))
            grads = jax.grad(self.model.loss)(params, asked[rows], answers[rows])
            updates, state = adam.update(grads, state)
            rate, decay = settings.learning_rate, settings.weight_decay
            return jax.tree.map(lambda p, u: p - rate * (u + decay * p), params, updates), state

        params = self.model.init(key_init, settings.init_scale)
        params, _ = jax.lax.fori_loop(0, steps, step, (params, adam.init(params)))
        is_right = self.model.is_right(params, jnp.asarray(test.asked), jnp.asarray(test.answers))
        loss = self.model.loss(params, jnp.asarray(test.asked), jnp.asarray(test.answers))
        return Trained(params, jnp.mean(is_right), loss)
