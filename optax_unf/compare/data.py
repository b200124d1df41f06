"""The data of the suites. What the unseen tasks read is kept for them: no weights are ever trained on it.

Kept for unseen tasks: CIFAR-10, Tiny Shakespeare, the tables `breast_cancer` and `diabetes`, the picture `flower`, and
the synthetic sets named so below. For probe tasks and for meta-training: Fashion-MNIST, the digits, One Billion Word,
Python's language reference, the tables `wine` and `iris`, the picture `china`.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from optax_unf.tasks.data import files
from optax_unf.tasks.data.cifar10 import cifar10
from optax_unf.tasks.data.images import Images, digits, downscale, fashion_mnist
from optax_unf.tasks.data.text import Text, lm1b

Pair = tuple[Array, Array]


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """Inputs and targets, row by row.

    Attributes:
      train: training inputs and targets.
      test: held-out inputs and targets.
    """

    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]

    def sample(self, key: Array, count: int) -> Pair:
        """Random training rows, drawn with replacement."""
        index = jax.random.randint(key, (count,), 0, len(self.train[0]))
        return jnp.asarray(self.train[0])[index], jnp.asarray(self.train[1])[index]

    def held_out(self) -> Pair:
        """The first 1,000 held-out rows."""
        return jnp.asarray(self.test[0][:1000]), jnp.asarray(self.test[1][:1000])


@dataclasses.dataclass(frozen=True, eq=False)
class Windows:
    """Windows of a text: tokens, and each one's successor.

    Attributes:
      train: training tokens.
      test: held-out tokens.
      vocabulary: how many tokens there are.
      length: of a window.
    """

    train: Integer[np.ndarray, " n"]
    test: Integer[np.ndarray, " m"]
    vocabulary: int
    length: int = 32

    def sample(self, key: Array, count: int) -> Pair:
        """Windows that start anywhere in the training text."""
        start = jax.random.randint(key, (count, 1), 0, len(self.train) - self.length)
        window = jnp.asarray(self.train)[start + jnp.arange(self.length + 1)]
        return window[:, :-1], window[:, 1:]

    def held_out(self) -> Pair:
        """256 windows at equal distances in the held-out text."""
        start = np.linspace(0, len(self.test) - self.length - 1, 256).astype(int)
        window = jnp.asarray(self.test[start[:, None] + np.arange(self.length + 1)])
        return window[:, :-1], window[:, 1:]


@dataclasses.dataclass(frozen=True, eq=False)
class Generated:
    """Rows that a function draws.

    Attributes:
      draw: from a key and a number, inputs and targets.
    """

    draw: Callable[[Array, int], Pair]

    def sample(self, key: Array, count: int) -> Pair:
        """Fresh rows."""
        return self.draw(key, count)

    def held_out(self) -> Pair:
        """2,000 rows, always the same."""
        return self.draw(jax.random.key(99), 2000)


# Images.


@functools.cache
def cifar(size: int) -> Rows:
    """CIFAR-10 (unseen tasks only)."""
    return _image_rows(*cifar10(size))


@functools.cache
def fashion(size: int) -> Rows:
    """Fashion-MNIST, with an axis for its one colour."""
    return _image_rows(*fashion_mnist(size))


@functools.cache
def handwriting() -> Rows:
    """scikit-learn's digits, with an axis for their one colour."""
    return _image_rows(*digits())


def reconstruction(rows: Rows) -> Rows:
    """The inputs of rows as their own targets, flattened."""
    return Rows(*((x, x.reshape(len(x), -1)) for x, _ in (rows.train, rows.test)))


@functools.cache
def picture(name: str, size: int = 64) -> Rows:
    """The colours of a picture that scikit-learn ships, by their places in [-1, 1]^2; each pixel is training data."""
    from sklearn.datasets import load_sample_image

    image = load_sample_image(f"{name}.jpg")
    side = min(image.shape[:2])
    pixels = downscale(image[None, :side, :side], size)[0] / 127.5 - 1
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    places = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    train = places, pixels.reshape(-1, 3).astype(np.float32)
    # Nothing is held out: places from all over the picture tell how well it is learned.
    order = np.random.default_rng(0).permutation(len(places))
    return Rows(train, (places[order], train[1][order]))


def _image_rows(train: Images, test: Images) -> Rows:
    def rows(part: Images) -> tuple[np.ndarray, np.ndarray]:
        images = part.images if part.images.ndim == 4 else part.images[..., None]
        return images, part.labels

    return Rows(rows(train), rows(test))


# Texts.


@functools.cache
def shakespeare(length: int = 32) -> Windows:
    """Tiny Shakespeare (unseen tasks only), its last tenth held out."""
    path = files.find(
        "input.txt",
        folder="tinyshakespeare",
        sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        urls=("https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",),
        data_dir=None,
    )
    text = path.read_bytes()
    cut = len(text) * 9 // 10
    return _windows(Text(text[:cut], text[cut:], "Tiny Shakespeare"), length)


@functools.cache
def news(length: int = 32) -> Windows:
    """One Billion Word, or what stands in for it: see `optax_unf.tasks.data.text.lm1b`."""
    return _windows(lm1b(), length)


def _windows(text: Text, length: int) -> Windows:
    """Characters of ASCII, all others being one token."""
    train, test = (np.minimum(np.frombuffer(part, np.uint8), 128).astype(np.int32) for part in (text.train, text.test))
    present = np.unique(np.concatenate([train, test]))
    train, test = (np.searchsorted(present, part).astype(np.int32) for part in (train, test))
    return Windows(train, test, len(present), length)


# Tables.


@functools.cache
def table(name: str) -> Rows:
    """A table that scikit-learn ships, standardized; a fifth is held out. Real targets are standardized, too.

    `breast_cancer` and `diabetes` are for unseen tasks only.
    """
    import sklearn.datasets

    x, y = map(np.asarray, getattr(sklearn.datasets, f"load_{name}")(return_X_y=True))
    order = np.random.default_rng(0).permutation(len(x))
    test, train = np.split(order, [len(x) // 5])
    x = _standardized(x, x[train])
    y = y.astype(np.int32) if y.dtype.kind in "iu" else _standardized(y[:, None], y[train, None])
    return Rows((x[train], y[train]), (x[test], y[test]))


def _standardized(x: np.ndarray, train: np.ndarray) -> np.ndarray:
    return ((x - train.mean(0)) / train.std(0)).astype(np.float32)


# Synthetic data.


def noisy_points(shape: str) -> Generated:
    """Denoising of points in the plane, as diffusion models learn it: noise from a noisy point and the noise's share.

    Inputs are the point and sines and cosines of the share; `"roll"` is for unseen tasks only.
    """
    return Generated(functools.partial(_noisy_points, _SHAPES[shape]))


def _noisy_points(curve: Callable[[Array], Array], key: Array, count: int) -> Pair:
    keys = jax.random.split(key, 3)
    share = jax.random.uniform(keys[0], (count, 1))
    noise = jax.random.normal(keys[1], (count, 2))
    point = curve(jax.random.uniform(keys[2], (count,)))
    angle = share * jnp.pi / 2
    noisy = jnp.cos(angle) * point + jnp.sin(angle) * noise
    phases = share * jnp.pi * 2.0 ** jnp.arange(-1, 3)
    return jnp.concatenate([noisy, jnp.sin(phases), jnp.cos(phases)], -1), noise


def _roll(u: Float[Array, " n"]) -> Float[Array, "n 2"]:
    angle = 3 * jnp.pi * (0.3 + 0.7 * u)
    return angle[:, None] * jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1) / 5


def _moons(u: Float[Array, " n"]) -> Float[Array, "n 2"]:
    upper = u < 0.5
    angle = jnp.pi * jnp.where(upper, 2 * u, 2 * u - 1)
    x = jnp.where(upper, jnp.cos(angle) - 0.5, 0.5 - jnp.cos(angle))
    y = jnp.where(upper, jnp.sin(angle) - 0.25, 0.25 - jnp.sin(angle))
    return jnp.stack([x, y], -1)


_SHAPES = {"roll": _roll, "moons": _moons}


def teacher(inputs: int, hidden: int, seed: int = 0) -> Generated:
    """Outputs of a fixed random tanh network, with noise."""
    first, second = jax.random.split(jax.random.key(seed))

    def draw(key: Array, count: int) -> Pair:
        x_key, noise_key = jax.random.split(key)
        x = jax.random.normal(x_key, (count, inputs))
        hidden_units = jnp.tanh(2 * x @ jax.random.normal(first, (inputs, hidden)) / inputs**0.5)
        y = hidden_units @ jax.random.normal(second, (hidden, 1)) / hidden**0.5
        return x, y + 0.1 * jax.random.normal(noise_key, y.shape)

    return Generated(draw)
