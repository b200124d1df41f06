"""Image data sets, from their original file formats."""

import dataclasses
import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import Float, Integer

from optax_unf.tasks.data import files

_FASHION_URLS = (
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
)
_FASHION_FILES = {
    "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
}


@dataclasses.dataclass(frozen=True)
class Images:
    """Labelled images.

    Attributes:
      images: float32, standardized by the mean and standard deviation of the training pixels, each colour apart.
      labels: int32.
    """

    images: Float[np.ndarray, "n height width *channels"]
    labels: Integer[np.ndarray, " n"]


def fashion_mnist(size: int = 8, data_dir: str | Path | None = None) -> tuple[Images, Images]:
    """Fashion-MNIST (Xiao et al. 2017), averaged down to `size` x `size` pixels: 60,000 train, 10,000 test.

    Args:
      size: height and width.
      data_dir: folder with the original idx files; see `optax_unf.tasks.files.find`.
    """
    arrays = [
        read_idx(
            files.find(
                name,
                folder="fashion_mnist",
                sha256=sha256,
                urls=tuple(url + name for url in _FASHION_URLS),
                data_dir=data_dir,
            )
        )
        for name, sha256 in _FASHION_FILES.items()
    ]
    train, train_labels, test, test_labels = arrays
    return standardize(downscale(train, size), train_labels, downscale(test, size), test_labels)


def digits() -> tuple[Images, Images]:
    """The 8x8 handwritten digits that scikit-learn ships: 1,500 train, 297 test. Needs no download.

    Raises:
      ModuleNotFoundError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "The digits come with scikit-learn, which is not installed: pip install 'optax-unf[tasks]'."
        ) from error

    pixels, labels = map(np.asarray, load_digits(return_X_y=True))
    images = pixels.astype(np.float32).reshape(-1, 8, 8)
    order = np.random.default_rng(0).permutation(len(images))
    train, test = order[:1500], order[1500:]
    return standardize(images[train], labels[train], images[test], labels[test])


def read_idx(path: Path) -> np.ndarray:
    """The array in a gzipped idx file of unsigned bytes.

    Raises:
      ValueError: the file is not one, or its size does not match its header.
    """
    try:
        raw = gzip.decompress(path.read_bytes())
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(
            f"{path} must be a gzipped idx file, but is damaged or something else: {error}. Fetch it again."
        ) from error
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path} must be an idx file of unsigned bytes, but starts with {raw[:4]!r}.")
    start = 4 + 4 * raw[3]
    shape = tuple(int.from_bytes(raw[k : k + 4], "big") for k in range(4, start, 4))
    if len(raw) != start + math.prod(shape):
        raise ValueError(
            f"{path} must hold an array of shape {shape}, as its header says, but has {len(raw)} bytes, not "
            f"{start + math.prod(shape)}. Fetch it again."
        )
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def downscale(images: np.ndarray, size: int) -> Float[np.ndarray, "n size size *channels"]:
    """Averages square images down: each new pixel is the mean of the area it covers."""
    old = images.shape[1]
    edges = np.linspace(0, old, size + 1)
    left, right = np.arange(old), np.arange(1, old + 1)
    overlap = np.minimum(right, edges[1:, None]) - np.maximum(left, edges[:-1, None])
    weights = (np.clip(overlap, 0, 1) * size / old).astype(np.float32)
    return np.einsum("ah,nhw...,bw->nab...", weights, images.astype(np.float32), weights, optimize=True)


def standardize(
    train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray
) -> tuple[Images, Images]:
    """Both parts, shifted and scaled by the mean and standard deviation of the training pixels, each colour apart."""
    mean, std = train.mean((0, 1, 2)), train.std((0, 1, 2))

    def standardized(x: np.ndarray, labels: np.ndarray) -> Images:
        return Images(((x - mean) / std).astype(np.float32), labels.astype(np.int32))

    return standardized(train, train_labels), standardized(test, test_labels)
