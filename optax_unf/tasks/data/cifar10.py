"""CIFAR-10, from its binary files."""

import gzip
import io
import tarfile
import zlib
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Integer

from optax_unf.tasks.data import files
from optax_unf.tasks.data.images import Images, downscale, standardize

_NAME = "cifar-10-binary.tar.gz"
_URL = f"https://www.cs.toronto.edu/~kriz/{_NAME}"
_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
_PIXELS = 3 * 32 * 32
_RECORD = 1 + _PIXELS


def cifar10(size: int = 8, data_dir: str | Path | None = None) -> tuple[Images, Images]:
    """CIFAR-10 (Krizhevsky 2009), averaged down to `size` x `size` colour images: 50,000 train, 10,000 test.

    A folder that the user names may hold a part of the data set: the number of images follows from the files.

    Args:
      size: height and width.
      data_dir: folder with the original archive; see `optax_unf.tasks.files.find`.

    Raises:
      ValueError: the archive is damaged or something else.
    """
    path = files.find(_NAME, folder="cifar10", sha256=_SHA256, urls=(_URL,), data_dir=data_dir, any_version=True)
    train, train_labels, test, test_labels = read_cifar10(path)
    return standardize(downscale(train, size), train_labels, downscale(test, size), test_labels)


def read_cifar10(path: Path) -> tuple[np.ndarray, Integer[np.ndarray, " n"], np.ndarray, Integer[np.ndarray, " m"]]:
    """Images `[n, 32, 32, 3]` (uint8) and labels of the training batches and of the test batch.

    Raises:
      ValueError: the file is not an archive of CIFAR-10's binary version.
    """
    try:
        # Whole, so that gzip's checksum is checked: tarfile takes a damaged member for the end.
        content = io.BytesIO(gzip.decompress(path.read_bytes()))
        with tarfile.open(fileobj=content, mode="r:") as archive:
            batches = {
                PurePosixPath(member.name).name: archive.extractfile(member).read()  # type: ignore[union-attr]
                for member in archive
                if member.isfile() and member.name.endswith(".bin")
            }
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(
            f"{path} must be CIFAR-10's archive, but is damaged or something else: {error}. Fetch {_URL}."
        ) from error
    training = [name for name in sorted(batches) if name.startswith("data_batch_")]
    if not training or "test_batch.bin" not in batches:
        raise ValueError(
            f"{path} must hold data_batch_1.bin and test_batch.bin, as CIFAR-10's binary version does, but holds "
            f"{', '.join(sorted(batches)) or 'no .bin file'}. Fetch {_URL}."
        )
    records = {name: _records(path, name, batches[name]) for name in (*training, "test_batch.bin")}
    return *_decode(np.concatenate([records[name] for name in training])), *_decode(records["test_batch.bin"])


def _records(path: Path, name: str, raw: bytes) -> np.ndarray:
    if not raw or len(raw) % _RECORD:
        raise ValueError(
            f"{name} in {path} must be whole records of {_RECORD} bytes, but has {len(raw)} bytes. Fetch it again."
        )
    records = np.frombuffer(raw, np.uint8).reshape(-1, _RECORD)
    if records[:, 0].max() > 9:
        raise ValueError(
            f"Labels of {name} in {path} must be 0 to 9, but one is {records[:, 0].max()}. Fetch it again."
        )
    return records


def _decode(records: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), records[:, 0].astype(np.int32)
