"""Dense and convolutional models in flax.linen. Kernels are `[*spatial, in, out]`."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from zoo import Case
from zoo_arrays import filled, normal

from optax_unf import Concat


def linen_case(model, args, axes, sizes=None):
    """The model as a function of all its variables; only its value is the output."""
    params = filled(jax.eval_shape(model.init, jax.random.key(0), *args))
    return Case(lambda params, *args: model.apply(params, *args), params, args, axes, sizes or {})


def dense(i, o):
    return {"kernel": (i, o), "bias": (o,)}


def conv(i, o):
    return {"kernel": (None, None, i, o), "bias": (o,)}


def scaled(d):
    return {"scale": (d,), "bias": (d,)}


def linen_mlp_batch_norm():
    """In evaluation, running statistics are parameters."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            for i, width in enumerate((5, 7)):
                x = nn.Dense(width, name=f"dense_{i}")(x)
                x = nn.relu(nn.BatchNorm(use_running_average=True, name=f"norm_{i}")(x))
            return nn.Dense(2, name="out")(x)

    params = {"dense_0": dense(None, "a"), "dense_1": dense("a", "b"), "out": dense("b", None)}
    params |= {"norm_0": scaled("a"), "norm_1": scaled("b")}
    statistics = {"norm_0": {"mean": ("a",), "var": ("a",)}, "norm_1": {"mean": ("b",), "var": ("b",)}}
    return linen_case(Model(), (normal(6, 3),), {"params": params, "batch_stats": statistics})


def linen_mlp_batch_norm_training():
    """In training, running statistics are only written."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(5, name="dense")(x)
            x = nn.relu(nn.BatchNorm(use_running_average=False, name="norm")(x))
            return nn.Dense(2, name="out")(x)

    model, x = Model(), normal(6, 3)
    variables = filled(jax.eval_shape(model.init, jax.random.key(0), x))

    def fn(params, x):
        out, _ = model.apply(variables | {"params": params}, x, mutable=["batch_stats"])
        return out

    axes = {"dense": dense(None, "a"), "norm": scaled("a"), "out": dense("a", None)}
    return Case(fn, variables["params"], (x,), axes)


def linen_mlp_norms():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.gelu(nn.LayerNorm(name="norm_a")(nn.Dense(5, name="a")(x)))
            x = nn.silu(nn.RMSNorm(name="norm_b")(nn.Dense(7, name="b")(x)))
            x = nn.relu(nn.GroupNorm(num_groups=2, name="norm_c")(nn.Dense(6, name="c")(x)))
            return nn.Dense(4, name="out")(x)

    groups = ("groups", "within")
    axes = {"a": dense(None, "a"), "norm_a": scaled("a"), "b": dense("a", "b"), "norm_b": {"scale": ("b",)}}
    axes |= {"c": dense("b", groups), "norm_c": scaled(groups), "out": dense(groups, None)}
    return linen_case(Model(), (normal(6, 3),), {"params": axes}, sizes={"groups": 2})


IMAGES = (normal(2, 6, 6, 3),)


def linen_cnn_pooled():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(4, (3, 3), strides=2, name="a")(x))
            x = nn.avg_pool(nn.relu(nn.Conv(5, (3, 3), name="b")(x)), (2, 2), strides=(1, 1))
            return nn.Dense(7, name="out")(x.mean((1, 2)))

    axes = {"a": conv(None, "a"), "b": conv("a", "b"), "out": dense("b", None)}
    return linen_case(Model(), IMAGES, {"params": axes})


def linen_cnn_flattened():
    """Each position of the image has its own rows of the dense kernel, in which channels are innermost."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.max_pool(nn.relu(nn.Conv(4, (3, 3), name="a")(x)), (2, 2), strides=(2, 2))
            x = nn.relu(nn.Dense(5, name="b")(x.reshape(len(x), -1)))
            return nn.Dense(7, name="out")(x)

    axes = {"a": conv(None, "a"), "b": dense((None, "a"), "b"), "out": dense("b", None)}
    return linen_case(Model(), IMAGES, {"params": axes})


def linen_cnn_separable():
    """A depthwise kernel has one input channel for each of its groups."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(4, (1, 1), name="in")(x))
            x = nn.Conv(4, (3, 3), feature_group_count=4, name="depth")(x)
            x = nn.relu(nn.Conv(5, (1, 1), name="point")(x))
            return nn.Dense(7, name="out")(x.mean((1, 2)))

    axes = {"in": conv(None, "a"), "depth": conv(None, "a"), "point": conv("a", "b"), "out": dense("b", None)}
    return linen_case(Model(), IMAGES, {"params": axes})


def linen_cnn_depth_multiplier():
    """Two output channels of the depthwise kernel for each input channel."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(4, (1, 1), name="in")(x))
            x = nn.relu(nn.Conv(8, (3, 3), feature_group_count=4, name="depth")(x))
            return nn.Dense(7, name="out")(x.mean((1, 2)))

    multiplied = ("a", "multiple")
    axes = {"in": conv(None, "a"), "depth": conv(None, multiplied), "out": dense(multiplied, None)}
    return linen_case(Model(), IMAGES, {"params": axes})


def linen_cnn_grouped():
    """Groups permute, and channels alike in every group."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(6, (3, 3), name="in")(x))
            x = nn.relu(nn.Conv(10, (3, 3), feature_group_count=2, name="grouped")(x))
            return nn.Dense(4, name="out")(x.mean((1, 2)))

    i, o = ("groups", "in"), ("groups", "out")
    grouped = {"kernel": (None, None, "in", o), "bias": (o,)}
    return linen_case(
        Model(), IMAGES, {"params": {"in": conv(None, i), "grouped": grouped, "out": dense(o, None)}}, {"groups": 2}
    )


def linen_resnet():
    """The stream keeps its name over an identity shortcut and gets a new one over a projection."""

    class Block(nn.Module):
        hidden: int
        width: int

        @nn.compact
        def __call__(self, x):
            y = nn.relu(nn.GroupNorm(num_groups=1, name="norm")(nn.Conv(self.hidden, (3, 3), name="a")(x)))
            y = nn.Conv(self.width, (3, 3), name="b")(y)
            return nn.relu(y + (x if x.shape == y.shape else nn.Conv(self.width, (1, 1), name="shortcut")(x)))

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(4, (3, 3), name="in")(x)
            x = Block(5, 4, name="block_0")(x)
            x = Block(6, 7, name="block_1")(x)
            x = Block(8, 7, name="block_2")(x)
            return nn.Dense(9, name="out")(x.mean((1, 2)))

    def block(i, h, o):
        return {"a": conv(i, h), "norm": scaled(h), "b": conv(h, o)} | ({"shortcut": conv(i, o)} if i != o else {})

    axes = {"in": conv(None, "s"), "out": dense("t", None)}
    axes |= {"block_0": block("s", "a", "s"), "block_1": block("s", "b", "t"), "block_2": block("t", "c", "t")}
    return linen_case(Model(), IMAGES, {"params": axes})


def linen_unet():
    """Skips are concatenated after what comes from below. A transposed convolution goes up."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            top = nn.relu(nn.Conv(4, (3, 3), name="top")(x))
            middle = nn.relu(nn.Conv(5, (3, 3), name="middle")(nn.max_pool(top, (2, 2), strides=(2, 2))))
            x = nn.relu(nn.Conv(7, (3, 3), name="bottom")(middle))
            x = nn.relu(nn.Conv(8, (3, 3), name="up_middle")(jnp.concatenate([x, middle], axis=-1)))
            x = nn.ConvTranspose(6, (2, 2), strides=(2, 2), name="rise")(x)
            x = nn.relu(nn.Conv(9, (3, 3), name="up_top")(jnp.concatenate([x, top], axis=-1)))
            return nn.Conv(2, (1, 1), name="out")(x)

    axes = {"top": conv(None, "t"), "middle": conv("t", "m"), "bottom": conv("m", "b")}
    axes |= {"up_middle": conv(Concat("b", "m"), "u"), "rise": conv("u", "r"), "up_top": conv(Concat("r", "t"), "v")}
    return linen_case(Model(), IMAGES, {"params": axes | {"out": conv("v", None)}})


def linen_densenet():
    """Each layer reads all before it side by side, the input image among them."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            for i, width in enumerate((4, 5, 7)):
                y = nn.Conv(width, (3, 3), name=f"conv_{i}")(nn.relu(nn.LayerNorm(name=f"norm_{i}")(x)))
                x = jnp.concatenate([x, y], axis=-1)
            return nn.Dense(2, name="out")(x.mean((1, 2)))

    axes = {"norm_0": scaled(None), "conv_0": conv(None, "a")}
    axes |= {"norm_1": scaled(Concat(None, "a")), "conv_1": conv(Concat(None, "a"), "b")}
    axes |= {"norm_2": scaled(Concat(None, "a", "b")), "conv_2": conv(Concat(None, "a", "b"), "c")}
    return linen_case(Model(), IMAGES, {"params": axes | {"out": dense(Concat(None, "a", "b", "c"), None)}})


CASES = (
    linen_mlp_batch_norm,
    linen_mlp_batch_norm_training,
    linen_mlp_norms,
    linen_cnn_pooled,
    linen_cnn_flattened,
    linen_cnn_separable,
    linen_cnn_depth_multiplier,
    linen_cnn_grouped,
    linen_resnet,
    linen_unet,
    linen_densenet,
)
