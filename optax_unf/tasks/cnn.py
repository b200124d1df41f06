"""Image classification by the convolutional network of the paper."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from optax_unf.tasks.classification import Classification
from optax_unf.tasks.task import Params


@dataclasses.dataclass(frozen=True, eq=False)
class CNNTask(Classification):
    """Two 3 x 3 convolutions with ReLU, the first with stride 2, then the mean over all places and a dense layer.

    Images are padded by one pixel on every side. `padding="SAME"` of jax would pad images of even size on two sides
    only where the stride is 2: the same network on mirrored images.

    Attributes:
      channels: of the two convolutions.
    """

    channels: tuple[int, int] = (16, 32)

    @property
    def axes(self) -> dict[str, Any]:
        """Names of the axes; the two convolutions share those of the place in the kernel."""
        return _axes("height", "width")

    @property
    def nfn_axes(self) -> dict[str, Any]:
        """Names of the axes for an NFN head: places in kernels are channels (Zhou et al. 2023a, Section 2)."""
        return _axes(None, None)

    def init(self, key: Array) -> Params:
        """Kernels with variance 1 / fan-in, zero biases."""
        first, second = self.channels
        shapes = {
            "conv_0": (3, 3, self.train.images.shape[-1], first),
            "conv_1": (3, 3, first, second),
            "dense": (second, self.classes),
        }
        kernel = jax.nn.initializers.variance_scaling(1.0, "fan_in", "normal")
        return {
            name: {"kernel": kernel(k, shape), "bias": jnp.zeros(shape[-1])}
            for k, (name, shape) in zip(jax.random.split(key, 3), shapes.items(), strict=True)
        }

    def predict(
        self, params: Params, images: Float[Array, "batch height width colours"]
    ) -> Float[Array, "batch classes"]:
        """Logits of the classes."""
        x = jax.nn.relu(convolve(params["conv_0"], images, stride=2))
        x = jax.nn.relu(convolve(params["conv_1"], x))
        return x.mean((1, 2)) @ params["dense"]["kernel"] + params["dense"]["bias"]


def _axes(height: str | None, width: str | None) -> dict[str, Any]:
    return {
        "conv_0": {"kernel": (height, width, "colour", "first"), "bias": ("first",)},
        "conv_1": {"kernel": (height, width, "first", "second"), "bias": ("second",)},
        "dense": {"kernel": ("second", "class"), "bias": ("class",)},
    }


def convolve(
    layer: Params, x: Float[Array, "batch h w inputs"], stride: int = 1
) -> Float[Array, "batch h2 w2 outputs"]:
    """A 3 x 3 convolution with one pixel of padding on every side; `layer` holds `kernel` and `bias`."""
    # As one matrix product of patches: on CPUs the gradient of a convolution's gradient is slow, and so is a
    # convolution with one kernel for each of many runs.
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows, columns = x.shape[1], x.shape[2]
    patches = [padded[:, i : i + rows : stride, j : j + columns : stride] for i in range(3) for j in range(3)]
    kernel = layer["kernel"]
    return jnp.concatenate(patches, -1) @ kernel.reshape(-1, kernel.shape[-1]) + layer["bias"]
