"""The files of CIFAR-10."""

import functools
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from places import data_folder

from optax_unf import tasks
from optax_unf.tasks.data.cifar10 import cifar10, read_cifar10

ARCHIVE = "cifar-10-binary.tar.gz"


@pytest.fixture(scope="module")
def data_dir() -> Path:
    """The folder with the real data files."""
    return data_folder(f"cifar10/{ARCHIVE}")


def record(label: int, image: np.ndarray) -> bytes:
    """A record as CIFAR-10's page describes it: the label, then a whole plane of each colour, row by row."""
    return bytes([label]) + b"".join(
        bytes([image[row, column, colour]]) for colour in range(3) for row in range(32) for column in range(32)
    )


def write_archive(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def some_images(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 32, 32, 3)).astype(np.uint8)


@functools.cache
def batch(count: int, labels: tuple[int, ...] = (3, 9, 0)) -> bytes:
    return b"".join(record(labels[n % len(labels)], image) for n, image in enumerate(some_images(count)))


def test_batches_of_an_archive(tmp_path):
    members = {
        "test_batch.bin": batch(1, (7,)),
        "data_batch_2.bin": batch(2),  # not in order
        "batches.meta.txt": b"airplane\n",
        "readme.html": b"<html>",
        "data_batch_1.bin": batch(3),
    }
    train, train_labels, test, test_labels = read_cifar10(write_archive(tmp_path / ARCHIVE, members))
    np.testing.assert_array_equal(train, np.concatenate([some_images(3), some_images(2)]))
    np.testing.assert_array_equal(train_labels, [3, 9, 0, 3, 9])
    np.testing.assert_array_equal(test, some_images(1))
    np.testing.assert_array_equal(test_labels, [7])


def test_colours_are_standardized_apart(tmp_path):
    write_archive(tmp_path / ARCHIVE, {"data_batch_1.bin": batch(3), "test_batch.bin": batch(2)})
    train, test = cifar10(8, tmp_path)
    small = some_images(3).reshape(3, 8, 4, 8, 4, 3).mean((2, 4))
    mean, std = small.mean((0, 1, 2)), small.std((0, 1, 2))
    np.testing.assert_allclose(train.images, (small - mean) / std, atol=1e-4)
    small = some_images(2).reshape(2, 8, 4, 8, 4, 3).mean((2, 4))
    np.testing.assert_allclose(test.images, (small - mean) / std, atol=1e-4)
    assert train.images.dtype == np.float32
    assert train.labels.dtype == np.int32


def damaged(folder: Path) -> dict[str, tuple[bytes, str]]:
    def archive(**members: bytes) -> bytes:
        return write_archive(folder / "made", {f"{name}.bin": x for name, x in members.items()}).read_bytes()

    whole = archive(data_batch_1=batch(2), test_batch=batch(1))
    broken = bytearray(whole)
    broken[len(whole) // 2 : len(whole) // 2 + 50] = b"\xff" * 50
    return {
        "empty": (b"", "damaged or something else"),
        "not an archive": (b"\x89PNG\r\n\x1a\n" * 99, "damaged or something else"),
        "archive cut off": (whole[: len(whole) // 2], "damaged or something else"),
        "archive broken inside": (bytes(broken), "damaged or something else"),
        "no batch": (archive(), "holds no .bin file"),
        "no test batch": (archive(data_batch_1=batch(2)), "must hold .* but holds data_batch_1.bin"),
        "no training batch": (archive(test_batch=batch(2)), "must hold .* but holds test_batch.bin"),
        "record cut off": (archive(data_batch_1=batch(2)[:-1], test_batch=batch(1)), "data_batch_1.bin .* has 6145"),
        # Together these are whole records.
        "records cut off": (
            archive(data_batch_1=batch(2)[:-1], data_batch_2=batch(2) + b"\0", test_batch=batch(1)),
            "data_batch_1.bin .* whole records of 3073 bytes, but has 6145 bytes",
        ),
        "empty batch": (archive(data_batch_1=batch(2), test_batch=b""), "test_batch.bin .* has 0 bytes"),
        "label too large": (
            archive(data_batch_1=batch(2), test_batch=batch(2, (1, 10))),
            "test_batch.bin .* 0 to 9, but one is 10",
        ),
    }


def test_damaged_and_foreign_archives(tmp_path):
    path = tmp_path / ARCHIVE
    for kind, (content, message) in damaged(tmp_path).items():
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message) as error:
            read_cifar10(path)
        assert str(path) in str(error.value), kind
        assert "Fetch" in str(error.value), kind


def test_missing_archive(tmp_path):
    with pytest.raises(FileNotFoundError, match=ARCHIVE):
        tasks.get("cnn-cifar10", data_dir=tmp_path)


@pytest.mark.slow
def test_real_archive_is_as_described(data_dir):
    # The counts of classes are those of shared/data/README.md, and of the whole data set they would be 5,000 each.
    task = tasks.get("cnn-cifar10", data_dir=data_dir)
    counts = [np.bincount(part.labels).tolist() for part in (task.train, task.test)]
    if len(task.train.labels) == 50_000:
        assert counts == [[5000] * 10, [1000] * 10]
    else:
        assert counts[0] == [1989, 1981, 2042, 2011, 2009, 1925, 2038, 2027, 2012, 1966]
        assert counts[1] == [488, 505, 512, 497, 507, 488, 491, 495, 504, 513]
    assert task.train.images.shape[1:] == (8, 8, 3)
    np.testing.assert_allclose(task.train.images.mean((0, 1, 2), dtype=np.float64), 0, atol=1e-4)
    np.testing.assert_allclose(task.train.images.std((0, 1, 2), dtype=np.float64), 1, atol=1e-4)
    # Ships and airplanes are bluer than frogs and deer; the upper half of a picture is more often sky.
    red, _, blue = np.moveaxis(task.train.images.mean((1, 2)), -1, 0)
    bluer = [(blue - red)[task.train.labels == label].mean() for label in range(10)]
    assert min(bluer[0], bluer[8]) > max(bluer[4], bluer[6])
    sky = task.train.images[task.train.labels == 0][..., 2]
    assert sky[:, :4].mean() > sky[:, 4:].mean()
    assert task.describe().parameters == 5418
    assert task.describe().batch == ((128, 8, 8, 3), (128,))
    assert "CIFAR-10, 8 x 8 pixels" in str(task.describe())
