"""The inner tasks and their data files."""

import gzip
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
from places import data_folder

from optax_unf import make_spec, tasks
from optax_unf.tasks import MLPTask, Task, TaskLike, as_task, task_spec
from optax_unf.tasks.data.images import Images, digits, downscale, fashion_mnist, read_idx
from optax_unf.tasks.task import check_held_out, task_horizon

FASHION_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)


@pytest.fixture(scope="module")
def data_dir() -> Path:
    """The folder with the real data files."""
    return data_folder(f"fashion_mnist/{FASHION_FILES[0]}")


@pytest.fixture(scope="module")
def fashion_task(data_dir) -> MLPTask:
    return tasks.get("mlp-fashion-mnist", data_dir=data_dir)


@pytest.fixture(scope="module")
def digits_task() -> MLPTask:
    return tasks.get("mlp-digits")


# The idx format.


def write_idx(path: Path, array: np.ndarray, *, kind: int = 8) -> Path:
    header = bytes([0, 0, kind, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))
    return path


@pytest.mark.parametrize("shape", [(), (0,), (5,), (3, 4), (2, 3, 4)])
def test_idx_round_trip(tmp_path, shape):
    array = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    read = read_idx(write_idx(tmp_path / "a.gz", array))
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, array)


def damaged() -> dict[str, bytes]:
    header = bytes([0, 0, 8, 2]) + (3).to_bytes(4, "big") + (4).to_bytes(4, "big")
    whole = gzip.compress(header + bytes(12))
    flipped = bytearray(whole)
    flipped[-6] ^= 0xFF
    return {
        "empty": b"",
        "not gzipped": header + bytes(12),
        "gzip cut off": whole[: len(whole) // 2],
        "gzip header alone": whole[:10],
        "gzip checksum wrong": bytes(flipped),
        "gzip body wrong": whole[:10] + b"\xff" * 20,
        "nothing in it": gzip.compress(b""),
        "foreign": gzip.compress(b"\x89PNG\r\n\x1a\n"),
        "another type of numbers": gzip.compress(bytes([0, 0, 0x0D, 1]) + (1).to_bytes(4, "big") + bytes(4)),
        "header cut off": gzip.compress(header[:6]),
        "data cut off": gzip.compress(header + bytes(11)),
        "data too long": gzip.compress(header + bytes(13)),
        "shape overflows": gzip.compress(bytes([0, 0, 8, 4]) + b"\x00\x01\x00\x00" * 4),
    }


@pytest.mark.parametrize("kind", damaged())
def test_damaged_and_foreign_idx_files(tmp_path, kind):
    path = tmp_path / "images.gz"
    path.write_bytes(damaged()[kind])
    with pytest.raises(ValueError, match=r"images\.gz must"):
        read_idx(path)


def test_idx_error_names_the_shape(tmp_path):
    path = tmp_path / "images.gz"
    path.write_bytes(damaged()["data cut off"])
    with pytest.raises(ValueError, match=r"shape \(3, 4\), as its header says, but has 23 bytes, not 24"):
        read_idx(path)


def test_real_idx_files_are_as_described(data_dir):
    train, train_labels, test, test_labels = (read_idx(data_dir / "fashion_mnist" / name) for name in FASHION_FILES)
    assert train.shape == (60_000, 28, 28)
    assert test.shape == (10_000, 28, 28)
    np.testing.assert_array_equal(np.bincount(train_labels), [6000] * 10)
    np.testing.assert_array_equal(np.bincount(test_labels), [1000] * 10)
    # shared/data/README.md: mean 0.2860, standard deviation 0.3530 of the training pixels.
    counts = np.bincount(train.reshape(-1), minlength=256) / train.size
    values = np.arange(256) / 255
    mean = counts @ values
    np.testing.assert_allclose(mean, 0.2860, atol=5e-5)
    np.testing.assert_allclose(np.sqrt(counts @ (values - mean) ** 2), 0.3530, atol=5e-5)


# Downscaling.


@pytest.mark.parametrize(("old", "new"), [(28, 8), (28, 7), (8, 8), (32, 8), (5, 3), (3, 5), (6, 1)])
def test_downscale_is_the_mean_over_areas(old, new):
    images = np.random.default_rng(0).integers(0, 256, (3, old, old)).astype(np.uint8)
    fine = np.kron(images.astype(np.float64), np.ones((1, new, new)))  # old * new pixels along each axis
    expected = fine.reshape(3, new, old, new, old).mean((2, 4))
    small = downscale(images, new)
    assert small.dtype == np.float32
    np.testing.assert_allclose(small, expected, rtol=1e-5)
    np.testing.assert_allclose(small.mean((1, 2)), images.mean((1, 2)), rtol=1e-5)


def test_downscale_keeps_a_constant_and_a_direction():
    np.testing.assert_allclose(downscale(np.full((1, 28, 28), 200, np.uint8), 8), 200, rtol=1e-6)
    ramp = np.broadcast_to(np.arange(28, dtype=np.uint8), (1, 28, 28))
    small = downscale(ramp, 8)[0]
    assert np.all(np.diff(small, axis=1) > 0)
    np.testing.assert_allclose(np.diff(small, axis=0), 0, atol=1e-5)


# Digits.


def test_digits():
    train, test = digits()
    assert train.images.shape == (1500, 8, 8)
    assert test.images.shape == (297, 8, 8)
    assert train.images.dtype == test.images.dtype == np.float32
    assert train.labels.dtype == test.labels.dtype == np.int32
    np.testing.assert_allclose(train.images.mean(), 0, atol=1e-5)
    np.testing.assert_allclose(train.images.std(), 1, atol=1e-5)
    assert np.bincount(train.labels).min() > 130
    assert np.bincount(test.labels).min() > 15
    # No image is in both parts, and none is left out.
    every = np.concatenate([train.images, test.images]).reshape(1797, 64)
    assert len(np.unique(every, axis=0)) == 1797


def test_digits_are_the_same_every_time():
    for one, two in zip(digits(), digits(), strict=True):
        np.testing.assert_array_equal(one.images, two.images)
        np.testing.assert_array_equal(one.labels, two.labels)


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r"scikit-learn.*pip install 'optax-unf\[tasks\]'"):
        tasks.get("mlp-digits")


# Fashion-MNIST.


def test_fashion_mnist(fashion_task):
    train, test = fashion_task.train, fashion_task.test
    assert train.images.shape == (60_000, 8, 8)
    assert test.images.shape == (10_000, 8, 8)
    assert train.images.dtype == test.images.dtype == np.float32
    assert train.labels.dtype == test.labels.dtype == np.int32
    np.testing.assert_allclose(train.images.mean(dtype=np.float64), 0, atol=1e-4)
    np.testing.assert_allclose(train.images.std(dtype=np.float64), 1, atol=1e-4)
    # The test images are standardized by the training images' numbers.
    np.testing.assert_allclose(test.images.mean(dtype=np.float64), 0, atol=0.02)
    assert test.images.mean() != 0
    np.testing.assert_array_equal(np.bincount(train.labels), [6000] * 10)
    np.testing.assert_array_equal(np.bincount(test.labels), [1000] * 10)
    # All images have one darkest pixel value, the standardized zero.
    assert train.images.min() == test.images.min()


def test_fashion_mnist_pixels_are_means_of_the_original(data_dir, fashion_task):
    raw = read_idx(data_dir / "fashion_mnist" / FASHION_FILES[2])[:100]
    fine = np.kron(raw.astype(np.float64), np.ones((1, 2, 2)))
    small = fine.reshape(100, 8, 7, 8, 7).mean((2, 4))
    # Standardization is one affine map for all pixels.
    x, y = small.reshape(-1), fashion_task.test.images[:100].reshape(-1)
    slope, offset = np.polyfit(x, y, 1)
    np.testing.assert_allclose(y, slope * x + offset, atol=1e-4)
    assert slope > 0


def test_fashion_mnist_from_the_environment(data_dir, monkeypatch, fashion_task):
    monkeypatch.setenv("OPTAX_UNF_DATA", str(data_dir))
    train, _ = fashion_mnist(8)
    np.testing.assert_array_equal(train.images[:100], fashion_task.train.images[:100])


def test_unknown_task():
    with pytest.raises(ValueError, match=r"must be one of mlp-digits, .*, but is 'mnist'"):
        tasks.get("mnist")


def test_task_names():
    assert tasks.names() == (
        "mlp-digits",
        "mlp-fashion-mnist",
        "cnn-cifar10",
        "cnn-cifar10-16",
        "rnn-lm1b",
        "rnn-lm1b-small",
        "transformer-lm1b",
        "transformer-lm1b-small",
    )


# The task.


def small_task() -> MLPTask:
    rng = np.random.default_rng(0)
    images = Images(rng.normal(size=(20, 2, 3)).astype(np.float32), np.arange(20, dtype=np.int32) % 4)
    return MLPTask("small", images, images, hidden=(5, 7), batch_size=8)


@pytest.mark.parametrize("seed", range(3))
def test_loss_at_initialization_is_that_of_a_guess(digits_task, seed):
    keys = jax.random.split(jax.random.key(seed))
    loss = digits_task.loss(digits_task.init(keys[0]), digits_task.sample(keys[1]))
    assert loss.shape == ()
    assert loss.dtype == jnp.float32
    assert np.log(10) - 0.2 < loss < np.log(10) + 0.8


def test_parameters(digits_task):
    params = digits_task.init(jax.random.key(0))
    shapes = jax.tree.map(jnp.shape, params)
    assert shapes == {
        "dense_0": {"kernel": (64, 32), "bias": (32,)},
        "dense_1": {"kernel": (32, 32), "bias": (32,)},
        "dense_2": {"kernel": (32, 10), "bias": (10,)},
    }
    for layer in params.values():
        np.testing.assert_allclose(layer["kernel"].std() * np.sqrt(len(layer["kernel"])), 1, atol=0.15)
        assert not layer["bias"].any()
    chex.assert_trees_all_equal(params, digits_task.init(jax.random.key(0)))
    assert not np.array_equal(params["dense_0"]["kernel"], digits_task.init(jax.random.key(1))["dense_0"]["kernel"])


def test_batches_depend_on_the_key_alone(digits_task):
    one, two, other = (digits_task.sample(jax.random.key(seed)) for seed in (0, 0, 1))
    chex.assert_trees_all_equal(one, two)
    assert not np.array_equal(one[0], other[0])
    chex.assert_trees_all_equal(one, jax.jit(digits_task.sample)(jax.random.key(0)))
    chex.assert_shape(one, [(128, 64), (128,)])


def test_batches_are_images_with_their_labels():
    task = small_task()
    by_pixels = {image.tobytes(): label for image, label in zip(task.train.images, task.train.labels, strict=True)}
    drawn = set()
    for seed in range(20):
        images, labels = jax.device_get(task.sample(jax.random.key(seed)))
        for image, label in zip(images, labels, strict=True):
            assert by_pixels[image.tobytes()] == label
            drawn.add(image.tobytes())
    assert len(drawn) == 20


def test_loss_agrees_with_numpy():
    task = small_task()
    params = jax.tree.map(lambda x: x + 0.1, task.init(jax.random.key(0)))
    images, labels = batch = task.sample(jax.random.key(1))
    x = np.asarray(images, np.float64)
    for i in range(3):
        x = x @ np.asarray(params[f"dense_{i}"]["kernel"], np.float64) + np.asarray(params[f"dense_{i}"]["bias"])
        x = np.maximum(x, 0) if i < 2 else x
    expected = np.mean(np.log(np.exp(x).sum(1)) - x[np.arange(8), labels])
    np.testing.assert_allclose(task.loss(params, batch), expected, rtol=1e-5)
    np.testing.assert_allclose(task.predict(params, images), x, atol=1e-5)


def test_gradient_agrees_with_finite_differences():
    task = small_task()
    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: x.astype(jnp.float64) + 0.01, task.init(jax.random.key(0)))
        images, labels = task.sample(jax.random.key(1))
        batch = (images.astype(jnp.float64), labels)
        assert task.loss(params, batch).dtype == jnp.float64
        loss = jax.jit(task.loss)
        # The step is too small to cross the kink of a ReLU.
        jax.test_util.check_grads(lambda p: loss(p, batch), (params,), order=1, modes=["rev"], eps=1e-7, rtol=1e-5)


def test_gradient_descent_lowers_the_loss(digits_task):
    @jax.jit
    def step(params, key):
        loss, grads = jax.value_and_grad(digits_task.loss)(params, digits_task.sample(key))
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), loss

    params = digits_task.init(jax.random.key(0))
    losses = []
    for key in jax.random.split(jax.random.key(1), 100):
        params, loss = step(params, key)
        losses.append(float(loss))
    assert losses[-1] < 0.5 * losses[0]


def test_widths_follow_from_the_data(digits_task):
    assert digits_task.widths == (64, 32, 32, 10)
    assert small_task().widths == (6, 5, 7, 4)


def test_both_tasks_have_the_network_of_the_paper(digits_task, fashion_task):
    assert fashion_task.widths == digits_task.widths
    assert fashion_task.batch_size == digits_task.batch_size == 128
    assert fashion_task.horizon == digits_task.horizon == 2000
    assert task_spec(fashion_task) == task_spec(digits_task)


# The protocol.


class Parabola:
    def init(self, key):
        return {"x": jax.random.normal(key, (2,)), "y": jax.random.normal(key, (3, 2))}

    def sample(self, key):
        return jax.random.normal(key, (2,))

    def loss(self, params, batch):
        return jnp.sum((params["x"] - 0.1 * batch) ** 2)


def test_an_object_with_three_methods_is_a_task():
    task = Parabola()
    assert isinstance(task, TaskLike)
    assert task_spec(task) == make_spec(None, task.init(jax.random.key(0)))
    assert isinstance(small_task(), Task)
    assert not isinstance(object(), TaskLike)


def test_defaults_of_a_task_are_those_of_an_object_with_three_methods():
    class Derived(Parabola, Task):
        pass

    class Full(Parabola):
        name, source, horizon, axes = "full", "nowhere", 7, {"x": ("n",)}

        def held_out(self):
            return jnp.ones(2)

    key = jax.random.key(0)
    for task in (as_task(Parabola()), Derived()):
        assert (task.source, task.axes, task.horizon, task.held_out()) == ("", None, None, None)
        assert task.of_run(key) is task
        with pytest.raises(ValueError, match=f"{task.name} must have an attribute horizon"):
            task_horizon(task)
        with pytest.raises(
            ValueError, match=rf"method `held_out\(\)`, which returns a batch, but {task.name} has none"
        ):
            check_held_out(task)
    assert [as_task(Parabola()).name, Derived().name] == ["Parabola", "Derived"]
    plain = Full()
    full = as_task(plain)
    assert (full.name, full.source, full.horizon, full.axes) == ("full", "nowhere", 7, {"x": ("n",)})
    assert full.held_out().shape == (2,)
    check_held_out(full)
    assert full == as_task(plain) != as_task(Full())
    with pytest.raises(AttributeError, match="'Derived' object has no attribute 'nome'"):
        Derived().nome  # noqa: B018


def test_spec_of_a_task_with_names(digits_task):
    spec = task_spec(digits_task)
    assert spec.sizes == {1: 32, 0: 64, 2: 32, 3: 10}
    assert {leaf.path: leaf.axes for leaf in spec.leaves} == {
        "dense_0/kernel": (0, 1),
        "dense_0/bias": (1,),
        "dense_1/kernel": (1, 2),
        "dense_1/bias": (2,),
        "dense_2/kernel": (2, 3),
        "dense_2/bias": (3,),
    }


def test_hidden_permutations_of_the_task_keep_its_loss(digits_task):
    spec = task_spec(digits_task)
    params = jax.tree.map(lambda x: x + 0.1, digits_task.init(jax.random.key(0)))
    batch = digits_task.sample(jax.random.key(1))
    g = spec.random_permutation(jax.random.key(2)) | {0: jnp.arange(64), 3: jnp.arange(10)}
    np.testing.assert_allclose(
        digits_task.loss(spec.permute(g, params), batch), digits_task.loss(params, batch), rtol=1e-5
    )
