"""Small networks of many families, as flax modules: what people train, in sizes that two cores train in seconds."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from optax_unf._flax import linen as nn
from optax_unf.tasks.cnn import convolve

_ACTIVATIONS = {"relu": jax.nn.relu, "tanh": jnp.tanh, "gelu": jax.nn.gelu, "silu": jax.nn.silu}


class MLP(nn.Module):
    """Dense layers; inputs are flattened. `widths` are those of the hidden layers and of the output."""

    widths: tuple[int, ...]
    activation: str = "relu"
    norm: bool = False
    residual: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "batch ..."]) -> Float[Array, "batch outputs"]:
        """Applies the network."""
        x = x.reshape(len(x), -1)
        *hidden, outputs = self.widths
        for width in hidden:
            y = nn.Dense(width)(nn.LayerNorm()(x) if self.norm else x)
            y = _ACTIVATIONS[self.activation](y)
            x = x + y if self.residual and x.shape == y.shape else y
        return nn.Dense(outputs)(x)


class FourierMLP(nn.Module):
    """An MLP on fixed random Fourier features of coordinates (Tancik et al. 2020, arXiv:2006.10739)."""

    widths: tuple[int, ...]
    features: int = 32
    scale: float = 4.0
    activation: str = "relu"

    @nn.compact
    def __call__(self, x: Float[Array, "batch dims"]) -> Float[Array, "batch outputs"]:
        """Applies the network."""
        frequencies = self.scale * jax.random.normal(jax.random.key(7), (x.shape[-1], self.features))
        angles = x @ frequencies
        return MLP(self.widths, self.activation)(jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1))


class Conv(nn.Module):
    """A 3 x 3 convolution."""

    features: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w inputs"]) -> Float[Array, "batch h2 w2 outputs"]:
        """Applies the convolution."""
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (3, 3, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return convolve({"kernel": kernel, "bias": bias}, x, self.stride)


class CNN(nn.Module):
    """Convolutions, each with a stride, then the mean over all places and a dense layer."""

    features: tuple[int, ...]
    strides: tuple[int, ...]
    outputs: int

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w colours"]) -> Float[Array, "batch outputs"]:
        """Applies the network."""
        for features, stride in zip(self.features, self.strides, strict=True):
            x = jax.nn.relu(Conv(features, stride)(x))
        return nn.Dense(self.outputs)(x.mean((1, 2)))


class BatchNorm(nn.Module):
    """Batch normalization by the batch's own mean and variance, in training and evaluation alike."""

    @nn.compact
    def __call__(self, x: Float[Array, "... features"]) -> Float[Array, "... features"]:
        """Normalizes."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        axes = tuple(range(x.ndim - 1))
        return jax.nn.standardize(x, axes, epsilon=1e-5) * scale + bias


class ResNet(nn.Module):
    """A stem, and a residual block of two convolutions for each of `features`; all but the first halve places."""

    features: tuple[int, ...]
    outputs: int
    norm: str = "batch"

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w colours"]) -> Float[Array, "batch outputs"]:
        """Applies the network."""
        x = jax.nn.relu(self._norm(Conv(self.features[0], stride=2)(x)))
        for i, features in enumerate(self.features):
            stride = 1 if i == 0 else 2
            y = jax.nn.relu(self._norm(Conv(features, stride)(x)))
            y = self._norm(Conv(features)(y))
            skip = x if x.shape == y.shape else nn.Dense(features, use_bias=False)(x[:, ::stride, ::stride])
            x = jax.nn.relu(skip + y)
        return nn.Dense(self.outputs)(x.mean((1, 2)))

    def _norm(self, x: Float[Array, "batch h w features"]) -> Float[Array, "batch h w features"]:
        return BatchNorm()(x) if self.norm == "batch" else nn.GroupNorm(num_groups=4)(x)


class FusedLSTM(nn.Module):
    """An LSTM whose four gates share one kernel for inputs and one for the state."""

    hidden: int

    @nn.compact
    def __call__(self, x: Float[Array, "batch length inputs"]) -> Float[Array, "batch length hidden"]:
        """The hidden state at each place."""
        inputs = nn.Dense(4 * self.hidden, name="inputs")(x)
        kernel = self.param("state", nn.initializers.orthogonal(), (self.hidden, 4 * self.hidden))

        def cell(carry: tuple[Array, Array], gates: Array) -> tuple[tuple[Array, Array], Array]:
            h, c = carry
            i, f, g, o = jnp.split(gates + h @ kernel, 4, axis=-1)
            c = jax.nn.sigmoid(f + 1.0) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        zero = jnp.zeros((len(x), self.hidden), x.dtype)
        _, states = jax.lax.scan(cell, (zero, zero), inputs.swapaxes(0, 1))
        return states.swapaxes(0, 1)


class RecurrentLM(nn.Module):
    """A recurrent language model: embedding, one layer, logits. `cell` is "elman", "gru" or "lstm" (gates fused)."""

    vocabulary: int
    hidden: int
    cell: str

    @nn.compact
    def __call__(self, tokens: Int[Array, "batch length"]) -> Float[Array, "batch length vocabulary"]:
        """Logits of each next token."""
        x = nn.Embed(self.vocabulary, self.hidden)(tokens)
        if self.cell == "lstm":
            x = FusedLSTM(self.hidden)(x)
        else:
            x = nn.RNN({"elman": nn.SimpleCell, "gru": nn.GRUCell}[self.cell](self.hidden))(x)
        return nn.Dense(self.vocabulary)(x)


class Attention(nn.Module):
    """Self-attention; query, key and value have kernels of their own, `[model, heads, size]`, or one fused kernel."""

    heads: int
    fused: bool
    causal: bool

    @nn.compact
    def __call__(self, x: Float[Array, "batch length model"]) -> Float[Array, "batch length model"]:
        """Applies attention."""
        batch, length, model = x.shape
        heads = (self.heads, model // self.heads)
        if self.fused:
            parts = jnp.split(nn.Dense(3 * model, name="qkv")(x), 3, axis=-1)
            query, key, value = (part.reshape(batch, length, *heads) for part in parts)
        else:
            query, key, value = (nn.DenseGeneral(heads, name=name)(x) for name in ("query", "key", "value"))
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / heads[1] ** 0.5
        if self.causal:
            scores = jnp.where(jnp.tril(jnp.ones((length, length), bool)), scores, -1e9)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), value)
        if self.fused:
            return nn.Dense(model, name="out")(mixed.reshape(batch, length, model))
        return nn.DenseGeneral(model, axis=(-2, -1), name="out")(mixed)


class Blocks(nn.Module):
    """Transformer blocks, normalized first."""

    blocks: int
    heads: int = 4
    fused: bool = False
    causal: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "batch length model"]) -> Float[Array, "batch length model"]:
        """Applies the blocks and a last normalization."""
        model = x.shape[-1]
        for _ in range(self.blocks):
            x = x + Attention(self.heads, self.fused, self.causal)(nn.LayerNorm()(x))
            x = x + nn.Dense(model)(jax.nn.gelu(nn.Dense(4 * model)(nn.LayerNorm()(x))))
        return nn.LayerNorm()(x)


class TransformerLM(nn.Module):
    """A causal language model with learned positions."""

    vocabulary: int
    model: int = 32
    blocks: int = 2
    fused: bool = False

    @nn.compact
    def __call__(self, tokens: Int[Array, "batch length"]) -> Float[Array, "batch length vocabulary"]:
        """Logits of each next token."""
        x = nn.Embed(self.vocabulary, self.model)(tokens)
        x = x + self.param("positions", nn.initializers.normal(0.02), (tokens.shape[1], self.model))
        x = Blocks(self.blocks, fused=self.fused, causal=True)(x)
        return nn.Dense(self.vocabulary)(x)


class ViT(nn.Module):
    """A vision Transformer on patches of 4 x 4 pixels; the mean over patches gives the classes."""

    outputs: int
    model: int = 32
    blocks: int = 2

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w colours"]) -> Float[Array, "batch outputs"]:
        """Applies the network."""
        x = nn.Dense(self.model)(_patches(x, 4))
        x = x + self.param("positions", nn.initializers.normal(0.02), x.shape[1:])
        return nn.Dense(self.outputs)(Blocks(self.blocks)(x).mean(1))


class Mixer(nn.Module):
    """An MLP-Mixer (Tolstikhin et al. 2021, arXiv:2105.01601) on patches of 4 x 4 pixels."""

    outputs: int
    model: int = 32
    blocks: int = 2

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w colours"]) -> Float[Array, "batch outputs"]:
        """Applies the network."""
        x = nn.Dense(self.model)(_patches(x, 4))
        for _ in range(self.blocks):
            tokens = nn.LayerNorm()(x).swapaxes(1, 2)
            tokens = nn.Dense(x.shape[1])(jax.nn.gelu(nn.Dense(2 * x.shape[1])(tokens)))
            x = x + tokens.swapaxes(1, 2)
            x = x + nn.Dense(self.model)(jax.nn.gelu(nn.Dense(2 * self.model)(nn.LayerNorm()(x))))
        return nn.Dense(self.outputs)(nn.LayerNorm()(x).mean(1))


def _patches(x: Float[Array, "batch h w c"], size: int) -> Float[Array, "batch patches pixels"]:
    batch, height, width, colours = x.shape
    x = x.reshape(batch, height // size, size, width // size, size, colours)
    return x.swapaxes(2, 3).reshape(batch, (height // size) * (width // size), size * size * colours)
