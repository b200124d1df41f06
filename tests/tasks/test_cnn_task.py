"""The convolutional task."""

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

from optax_unf import Architecture, infer_spec, init_weights
from optax_unf.meta import learned_training, training_losses
from optax_unf.optimizer.meta_weights import check_fits
from optax_unf.tasks import CNNTask, Rescaled, task_spec
from optax_unf.tasks.data.images import Images


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


@pytest.mark.slow
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


@pytest.mark.slow
def test_nfn_takes_places_as_channels():
    task = small_task()
    abstract = jax.eval_shape(task.init, jax.random.key(0))
    # What the function's own symmetries are: the places in kernels are fixed.
    assert task_spec(task, "nfn") == task_spec(Rescaled(task), "nfn")
    inferred = infer_spec(task.loss, abstract, task.sample(jax.random.key(1)), io="permute")
    weights = init_weights(Architecture(head="nfn"), inferred, jax.random.key(0))
    check_fits(weights.spec, task_spec(task, "nfn"))
    with pytest.raises(ValueError, match="differs at leaf 'conv_0/kernel'"):
        check_fits(weights.spec, task_spec(task))
    loss = training_losses(
        learned_training(weights.architecture, task), weights.theta, jax.random.split(jax.random.key(1), 1), 3
    )
    assert np.isfinite(loss).all()
