"""Image classification: batches and loss, whatever the network."""

import abc
import dataclasses

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from optax_unf.tasks.data.images import Images
from optax_unf.tasks.describe import Description, describe
from optax_unf.tasks.task import Params, Task


@dataclasses.dataclass(frozen=True, eq=False)
class Classification(Task):
    """Cross-entropy of the labels of images; subclasses say what the network is.

    Attributes:
      name: the task's name.
      train: training images.
      test: held-out images.
      source: where the images came from.
      batch_size: images per batch.
      horizon: inner steps of one whole inner run.
    """

    name: str
    train: Images
    test: Images
    source: str = ""
    batch_size: int = 128
    horizon: int = 2000

    @abc.abstractmethod
    def init(self, key: Array) -> Params:
        """Fresh parameters."""

    @abc.abstractmethod
    def predict(self, params: Params, images: Float[Array, "batch height width *channels"]) -> Float[Array, "batch c"]:
        """Logits of the classes."""

    @property
    def classes(self) -> int:
        """The number of classes."""
        return int(self.train.labels.max()) + 1

    def sample(self, key: Array) -> tuple[Float[Array, "batch height width *channels"], Int[Array, " batch"]]:
        """A uniformly random training batch, drawn with replacement."""
        index = jax.random.randint(key, (self.batch_size,), 0, len(self.train.labels))
        return jnp.asarray(self.train.images)[index], jnp.asarray(self.train.labels)[index]

    def held_out(self) -> tuple[Float[Array, "n height width *channels"], Int[Array, " n"]]:
        """All held-out images, as one batch."""
        return jnp.asarray(self.test.images), jnp.asarray(self.test.labels)

    def loss(self, params: Params, batch: tuple[Array, Array]) -> Float[Array, ""]:
        """Mean cross-entropy, in nats."""
        images, labels = batch
        return optax.softmax_cross_entropy_with_integer_labels(self.predict(params, images), labels).mean()

    def describe(self) -> Description:
        """Sizes, and the work of one step."""
        return describe(self)
