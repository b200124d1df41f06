"""Image classification by the multi-layer perceptron 64-32-32-10 of the paper."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from optax_unf.tasks.images import Images
from optax_unf.tasks.task import Params


@dataclasses.dataclass(frozen=True, eq=False)
class MLPTask:
    """A ReLU network on flattened images, cross-entropy loss.

    Attributes:
      name: the task's name.
      train: training images.
      test: held-out images.
      hidden: widths of the hidden layers.
      batch_size: images per batch.
      horizon: inner steps of one whole inner run.
    """

    name: str
    train: Images
    test: Images
    hidden: tuple[int, ...] = (32, 32)
    batch_size: int = 128
    horizon: int = 2000

    @property
    def widths(self) -> tuple[int, ...]:
        """Sizes of the layers from the pixels to the classes."""
        return (int(np.prod(self.train.images.shape[1:])), *self.hidden, int(self.train.labels.max()) + 1)

    @property
    def axes(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """Names of the axes: the neurons of layer `i` have the name `i`."""
        return {f"dense_{i}": {"kernel": (i, i + 1), "bias": (i + 1,)} for i in range(len(self.hidden) + 1)}

    def init(self, key: Array) -> Params:
        """Kernels with variance 1 / fan-in, zero biases."""
        keys = jax.random.split(key, len(self.hidden) + 1)
        return {
            f"dense_{i}": {
                "kernel": jax.random.normal(k, (inputs, outputs)) / jnp.sqrt(inputs),
                "bias": jnp.zeros(outputs),
            }
            for i, (k, (inputs, outputs)) in enumerate(zip(keys, itertools.pairwise(self.widths), strict=True))
        }

    def sample(self, key: Array) -> tuple[Float[Array, "batch pixels"], Int[Array, " batch"]]:
        """A uniformly random training batch, drawn with replacement."""
        index = jax.random.randint(key, (self.batch_size,), 0, len(self.train.labels))
        images = self.train.images.reshape(len(self.train.labels), -1)
        return jnp.asarray(images)[index], jnp.asarray(self.train.labels)[index]

    def loss(self, params: Params, batch: tuple[Array, Array]) -> Float[Array, ""]:
        """Mean cross-entropy, in nats."""
        images, labels = batch
        logits = self.predict(params, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def predict(self, params: Params, images: Float[Array, "batch pixels"]) -> Float[Array, "batch classes"]:
        """Logits of the classes."""
        x = images
        for i in range(len(params)):
            layer = params[f"dense_{i}"]
            x = x @ layer["kernel"] + layer["bias"]
            if i + 1 < len(params):
                x = jax.nn.relu(x)
        return x
