"""Image classification by the multi-layer perceptron 64-32-32-10 of the paper."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from optax_unf.tasks.classification import Classification
from optax_unf.tasks.task import Params


@dataclasses.dataclass(frozen=True, eq=False)
class MLPTask(Classification):
    """A ReLU network on flattened images.

    Attributes:
      hidden: widths of the hidden layers.
    """

    hidden: tuple[int, ...] = (32, 32)

    @property
    def widths(self) -> tuple[int, ...]:
        """Sizes of the layers from the pixels to the classes."""
        return (int(np.prod(self.train.images.shape[1:])), *self.hidden, self.classes)

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
        return _flat(*super().sample(key))

    def held_out(self) -> tuple[Float[Array, "n pixels"], Int[Array, " n"]]:
        """All held-out images, as one batch."""
        return _flat(*super().held_out())

    def predict(self, params: Params, images: Float[Array, "batch pixels"]) -> Float[Array, "batch classes"]:
        """Logits of the classes."""
        x = images
        for i in range(len(params)):
            layer = params[f"dense_{i}"]
            x = x @ layer["kernel"] + layer["bias"]
            if i + 1 < len(params):
                x = jax.nn.relu(x)
        return x


def _flat(images: Array, labels: Array) -> tuple[Array, Array]:
    return images.reshape(len(images), -1), labels
