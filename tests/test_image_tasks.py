"""The convolutional task and CIFAR-10's files, and rescaled parameters."""

import functools
import io
import os
import tarfile
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import optax
import pytest

from optax_unf import infer_spec, tasks
from optax_unf.meta import Training
from optax_unf.tasks import CNNTask, Rescaled, task_spec
from optax_unf.tasks.cifar10 import cifar10, read_cifar10
from optax_unf.tasks.images import Images

ARCHIVE = "cifar-10-binary.tar.gz"


@pytest.fixture(scope="module")
def data_dir() -> Path:
    """The folder with the real data files."""
    for candidate in (os.environ.get("OPTAX_UNF_DATA") or "/nonexistent", Path(__file__).parents[2] / "shared/data"):
        if Path(candidate, "cifar10", ARCHIVE).is_file():
            return Path(candidate)
    pytest.skip("needs CIFAR-10: set OPTAX_UNF_DATA to a folder that holds cifar10/")


# The binary files.


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


# The network.


def small_task(size: int = 4, batch_size: int = 8) -> CNNTask:
    images = np.random.default_rng(0).normal(size=(20, size, size, 3)).astype(np.float32)
    part = Images(images, np.arange(20, dtype=np.int32) % 4)
    return CNNTask("small", part, part, batch_size=batch_size, channels=(5, 7))


def some_params(task):
    return jax.tree.map(lambda x: x + 0.1, task.init(jax.random.key(0)))


def with_lax(params, images, paddings):
    """The network with jax's convolution."""
    x = images
    for name, stride, padding in zip(("conv_0", "conv_1"), (2, 1), paddings, strict=True):
        convolved = jax.lax.conv_general_dilated(
            x, params[name]["kernel"], (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu(convolved + params[name]["bias"])
    return x.mean((1, 2)) @ params["dense"]["kernel"] + params["dense"]["bias"]


@pytest.mark.parametrize("size", [4, 5])
def test_convolutions_agree_with_those_of_jax(size):
    task = small_task(size)
    params, images = some_params(task), jnp.asarray(task.train.images)
    everywhere = [(1, 1), (1, 1)]
    logits = task.predict(params, images)
    np.testing.assert_allclose(logits, with_lax(params, images, [everywhere, everywhere]), rtol=1e-4, atol=1e-5)
    same = with_lax(params, images, ["SAME", "SAME"])
    if size % 2:
        np.testing.assert_allclose(logits, same, rtol=1e-4, atol=1e-5)
    else:
        # SAME pads images of even size on two sides only: the network of mirrored images and kernels.
        assert np.abs(logits - same).max() > 0.01
        kernels = {name: params[name] | {"kernel": params[name]["kernel"][::-1, ::-1]} for name in ("conv_0", "conv_1")}
        mirrored = task.predict(params | kernels, images[:, ::-1, ::-1])
        np.testing.assert_allclose(mirrored, same, rtol=1e-4, atol=1e-5)


def test_gradient_agrees_with_finite_differences():
    task = small_task()
    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: x.astype(jnp.float64), some_params(task))
        images, labels = task.sample(jax.random.key(1))
        loss = jax.jit(lambda p: task.loss(p, (images.astype(jnp.float64), labels)))
        # The step is too small to cross the kink of a ReLU.
        jax.test_util.check_grads(loss, (params,), order=1, modes=["rev"], eps=1e-7, rtol=1e-5)


def test_initialization():
    part = Images(np.random.default_rng(0).normal(size=(256, 8, 8, 3)).astype(np.float32), np.arange(256) % 10)
    task = CNNTask("noise", part, part)
    params = task.init(jax.random.key(0))
    for layer, fan_in in (("conv_0", 27), ("conv_1", 144), ("dense", 32)):
        assert not params[layer]["bias"].any()
        kernel = np.asarray(params[layer]["kernel"])
        np.testing.assert_allclose(kernel.std() * np.sqrt(fan_in), 1, atol=0.15)
        assert abs(kernel.mean()) * np.sqrt(kernel.size * fan_in) < 4
    losses = [task.loss(task.init(key), task.sample(key)) for key in jax.random.split(jax.random.key(1), 4)]
    np.testing.assert_allclose(losses, np.log(10), atol=0.3)
    # Products by hand: of each convolution the forward pass and the gradients of kernel and, but for the first, input.
    places, images = 4 * 4, 128
    first, second, dense = (2 * images * n for n in (places * 27 * 16, places * 144 * 32, 32 * 10))
    assert task.describe().flops == 2 * first + 3 * second + 3 * dense
    assert task.describe().parameters == 27 * 16 + 16 + 144 * 32 + 32 + 32 * 10 + 10 == 5418


def test_batches_depend_on_the_key_alone():
    task = small_task()
    for seed in (0, 1):
        images, labels = task.sample(jax.random.key(seed))
        again, _ = jax.jit(task.sample)(jax.random.key(seed))
        np.testing.assert_array_equal(images, again)
        where = [np.flatnonzero((task.train.images == image).all((1, 2, 3)))[0] for image in images]
        np.testing.assert_array_equal(labels, task.train.labels[np.array(where)])
    assert not np.array_equal(images, task.sample(jax.random.key(0))[0])


def test_permutations_of_channels_keep_the_loss():
    task = small_task()
    spec, params, data = task_spec(task), some_params(task), task.sample(jax.random.key(1))
    g = spec.random_permutation(jax.random.key(2))
    kept = g | {name: jnp.arange(spec.sizes[name]) for name in ("height", "width", "colour", "class")}
    loss = task.loss(params, data)
    np.testing.assert_allclose(task.loss(spec.permute(kept, params), data), loss, rtol=1e-5)
    # Colours and classes may move if the data does.
    moved = kept | {"colour": jnp.array([1, 2, 0]), "class": jnp.array([1, 3, 0, 2])}
    images, labels = data
    data = (images[..., moved["colour"]], jnp.argsort(moved["class"])[labels])
    np.testing.assert_allclose(task.loss(spec.permute(moved, params), data), loss, rtol=1e-5)
    # Places in a kernel may not: that they have names is the paper's choice, for the layer's sake.
    turned = kept | {"height": jnp.array([1, 2, 0])}
    assert abs(task.loss(spec.permute(turned, params), task.sample(jax.random.key(1))) - loss) > 1e-4


def test_inferred_spec():
    """The same but for the places in kernels, whose order the function depends on."""
    task = small_task()
    abstract = jax.eval_shape(task.init, jax.random.key(0))
    inferred = infer_spec(task.loss, abstract, task.sample(jax.random.key(1)), io="permute")
    names = {}
    for leaf, given in zip(inferred.leaves, task_spec(task).leaves, strict=True):
        for found, name in zip(leaf.axes, given.axes, strict=True):
            assert names.setdefault(name, found) == found
    assert names.pop("height") is names.pop("width") is None
    assert len(set(names.values())) == len(names) == 4


# Rescaled parameters.


def test_one_scale_for_each_leaf_and_run():
    task = Rescaled(small_task(), 0.1, 10.0)
    draw = jax.jit(jax.vmap(lambda key: jnp.stack(jax.tree.leaves(task.of_run(key).scales))))
    scales = np.log10(draw(jax.random.split(jax.random.key(0), 500)))
    assert scales.shape == (500, 6)
    assert len(np.unique(scales)) > 2900
    np.testing.assert_array_less(np.abs(scales), 1 + 1e-6)
    # Uniform on [-1, 1]: variance 1 / 3, leaves independent.
    np.testing.assert_allclose(scales.mean(0), 0, atol=0.12)
    np.testing.assert_allclose(np.cov(scales.T), np.eye(6) / 3, atol=0.08)


def test_rescaled_runs_begin_with_the_same_losses_and_then_differ():
    task = small_task()
    plain, rescaled = Training(task, optax.sgd), Training(Rescaled(task, 0.3, 3.0), optax.sgd)

    @jax.jit
    def losses(rate, key):
        return jnp.stack([_losses(problem, rate, key, 3) for problem in (plain, rescaled)])

    first, second = losses(0.3, jax.random.key(0)), losses(0.3, jax.random.key(1))
    np.testing.assert_allclose(first[0, 0], first[1, 0], rtol=1e-5)
    assert np.abs(first[0, 1:] - first[1, 1:]).min() > 1e-4
    # Without training, losses are the same at every step: the scales of a run do not change.
    still = losses(0.0, jax.random.key(1))
    np.testing.assert_allclose(still[0], still[1], rtol=1e-5)
    assert not np.allclose(first[1], second[1])


def _losses(problem, rate, key, steps):
    def step(run, _):
        return problem.step(rate, run)

    return jax.lax.scan(step, problem.start(rate, key), length=steps)[1]


def test_gradient_descent_in_other_units():
    """SGD on `inner` is SGD on the parameters with `scale**2` times the rate."""
    task = small_task()
    problem = Training(Rescaled(task, 0.3, 3.0), optax.sgd)
    rate, key = 0.05, jax.random.key(0)
    run = problem.start(rate, key)
    scales = problem.task.of_run(run.key).scales
    expected = task.init(jax.random.split(key)[0])
    step = jax.jit(functools.partial(problem.step, rate))
    for n in range(3):
        run, loss = step(run)
        data = task.sample(jax.random.fold_in(run.key, n))
        np.testing.assert_allclose(loss, task.loss(expected, data), rtol=1e-5)
        grads = jax.grad(task.loss)(expected, data)
        expected = jax.tree.map(lambda x, g, scale: x - rate * scale**2 * g, expected, grads, scales)
    for x, scale, y in zip(*map(jax.tree.leaves, (run.params, scales, expected)), strict=True):
        np.testing.assert_allclose(x * scale, y, rtol=1e-4, atol=1e-5)


def test_scale_one_is_the_task_itself():
    task = small_task()
    one = Rescaled(task, 1.0, 1.0)
    results = []
    for problem in (Training(one, optax.adam), Training(task, optax.adam)):
        run, loss = problem.step(0.1, problem.start(0.1, jax.random.key(0)))
        results.append((run.params, loss))
    jax.tree.map(np.testing.assert_array_equal, *results)
    assert task_spec(one) == task_spec(task)
    assert one.name == "small-rescaled-1-1"
    assert isinstance(one, tasks.Task)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0), (2.0, 1.0), (1.0, np.inf), (np.nan, 1.0)])
def test_ranges_that_are_none(low, high):
    with pytest.raises(ValueError, match="positive and finite, low at most high, but low is"):
        Rescaled(small_task(), low, high)
