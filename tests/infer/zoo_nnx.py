"""Dense and convolutional models in flax.nnx. Kernels are `[*spatial, in, out]`."""

import jax
import jax.numpy as jnp
from flax import nnx
from zoo import Case
from zoo_arrays import filled, normal


def nnx_function(model, of=nnx.Param):
    """The model as a pure function, and the part of its state that `of` selects as parameters."""
    graph, params, rest = jax.eval_shape(lambda: nnx.split(model(nnx.Rngs(0)), of, ...))
    rest = filled(rest)
    return lambda params, *args: nnx.merge(graph, params, rest, copy=True)(*args), filled(params)


WITH_STATISTICS = (nnx.Param, nnx.BatchStat)


def dense(i, o):
    return {"kernel": (i, o), "bias": (o,)}


def conv(i, o):
    return {"kernel": (None, None, i, o), "bias": (o,)}


def scaled(d):
    return {"scale": (d,), "bias": (d,)}


def batch_norm(d):
    return {"scale": (d,), "bias": (d,), "mean": (d,), "var": (d,)}


def nnx_mlp_norms():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.a, self.norm_a = nnx.Linear(4, 8, rngs=rngs), nnx.BatchNorm(8, use_running_average=True, rngs=rngs)
            self.b, self.norm_b = nnx.Linear(8, 5, rngs=rngs), nnx.LayerNorm(5, rngs=rngs)
            self.c, self.norm_c = nnx.Linear(5, 7, rngs=rngs), nnx.RMSNorm(7, rngs=rngs)
            self.d, self.norm_d = nnx.Linear(7, 6, rngs=rngs), nnx.GroupNorm(6, num_groups=2, rngs=rngs)
            self.out = nnx.Linear(6, 3, rngs=rngs)

        def __call__(self, x):
            x = nnx.relu(self.norm_a(self.a(x)))
            x = nnx.gelu(self.norm_b(self.b(x)))
            x = nnx.silu(self.norm_c(self.c(x)))
            x = nnx.relu(self.norm_d(self.d(x)))
            return self.out(x)

    fn, params = nnx_function(Model, WITH_STATISTICS)
    d = ("groups", "within")
    axes = {
        "a": dense(None, "a"),
        "norm_a": batch_norm("a"),
        "b": dense("a", "b"),
        "norm_b": scaled("b"),
        "c": dense("b", "c"),
        "norm_c": {"scale": ("c",)},
        "d": dense("c", d),
        "norm_d": scaled(d),
        "out": dense(d, None),
    }
    return Case(fn, params, (normal(3, 4),), axes, sizes={"groups": 2})


def nnx_cnn():
    """Batch normalization in training: the running statistics are no parameters."""

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.a, self.norm_a = nnx.Conv(3, 4, (3, 3), rngs=rngs), nnx.BatchNorm(4, rngs=rngs)
            self.b, self.norm_b = nnx.Conv(4, 6, (3, 3), rngs=rngs), nnx.BatchNorm(6, rngs=rngs)
            self.out = nnx.Linear(6, 5, rngs=rngs)

        def __call__(self, x):
            x = nnx.max_pool(nnx.relu(self.norm_a(self.a(x))), (2, 2), strides=(2, 2))
            x = nnx.relu(self.norm_b(self.b(x)))
            return self.out(x.mean((1, 2)))

    fn, params = nnx_function(Model)
    axes = {
        "a": conv(None, "a"),
        "norm_a": scaled("a"),
        "b": conv("a", "b"),
        "norm_b": scaled("b"),
        "out": dense("b", None),
    }
    return Case(fn, params, (normal(2, 4, 4, 3),), axes)


def nnx_resnet():
    class Block(nnx.Module):
        def __init__(self, i, m, o, stride, rngs):
            self.a, self.norm_a = (
                nnx.Conv(i, m, (3, 3), strides=stride, use_bias=False, rngs=rngs),
                nnx.BatchNorm(m, use_running_average=True, rngs=rngs),
            )
            self.b, self.norm_b = (
                nnx.Conv(m, o, (3, 3), use_bias=False, rngs=rngs),
                nnx.BatchNorm(o, use_running_average=True, rngs=rngs),
            )
            if stride > 1:
                self.shortcut = nnx.Conv(i, o, (1, 1), strides=stride, rngs=rngs)

        def __call__(self, x):
            y = self.norm_b(self.b(nnx.relu(self.norm_a(self.a(x)))))
            return nnx.relu((self.shortcut(x) if hasattr(self, "shortcut") else x) + y)

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.stem = nnx.Conv(3, 5, (3, 3), rngs=rngs)
            self.blocks = nnx.List([Block(5, 4, 5, 1, rngs), Block(5, 6, 7, 2, rngs), Block(7, 8, 7, 1, rngs)])
            self.out = nnx.Linear(7, 2, rngs=rngs)

        def __call__(self, x):
            x = self.stem(x)
            for block in self.blocks:
                x = block(x)
            return self.out(x.mean((1, 2)))

    def block(i, m, o):
        return {
            "a": {"kernel": (None, None, i, m)},
            "norm_a": batch_norm(m),
            "b": {"kernel": (None, None, m, o)},
            "norm_b": batch_norm(o),
        }

    fn, params = nnx_function(Model, WITH_STATISTICS)
    axes = {
        "stem": conv(None, "wide"),
        "blocks": [
            block("wide", "m0", "wide"),
            block("wide", "m1", "wider") | {"shortcut": conv("wide", "wider")},
            block("wider", "m2", "wider"),
        ],
        "out": dense("wider", None),
    }
    return Case(fn, params, (normal(2, 4, 4, 3),), axes)


def nnx_grouped_conv():
    """ResNeXt and MobileNet: groups permute, and channels within a group, the same way in every group."""

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.pointwise = nnx.Conv(3, 6, (1, 1), rngs=rngs)
            self.grouped = nnx.Conv(6, 8, (3, 3), feature_group_count=2, rngs=rngs)
            self.depthwise = nnx.Conv(8, 8, (3, 3), feature_group_count=8, rngs=rngs)
            self.out = nnx.Linear(8, 5, rngs=rngs)

        def __call__(self, x):
            x = nnx.relu(self.grouped(nnx.relu(self.pointwise(x))))
            return self.out(nnx.relu(self.depthwise(x)).mean((1, 2)))

    fn, params = nnx_function(Model)
    axes = {
        "pointwise": conv(None, ("groups", "a")),
        "grouped": conv("a", ("groups", "b")),
        "depthwise": conv(None, ("groups", "b")),
        "out": dense(("groups", "b"), None),
    }
    return Case(fn, params, (normal(2, 4, 4, 3),), axes)


def nnx_lora():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.a = nnx.LoRALinear(4, 6, lora_rank=2, rngs=rngs)
            self.b = nnx.LoRA(6, 3, 5, base_module=nnx.Linear(6, 5, rngs=rngs), rngs=rngs)

        def __call__(self, x):
            return self.b(nnx.relu(self.a(x)))

    fn, params = nnx_function(Model)
    axes = {
        "a": dense(None, "h") | {"lora": {"lora_a": (None, "rank_a"), "lora_b": ("rank_a", "h")}},
        "b": {"base_module": dense("h", None), "lora_a": ("h", "rank_b"), "lora_b": ("rank_b", None)},
    }
    return Case(fn, params, (normal(3, 4),), axes)


def nnx_einsum():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.up = nnx.Einsum("btd,dhk->bthk", (3, 4, 5), (4, 5), rngs=rngs)
            self.down = nnx.Einsum("bthk,hkd->btd", (4, 5, 2), (2,), rngs=rngs)

        def __call__(self, x):
            return self.down(nnx.relu(self.up(x)))

    fn, params = nnx_function(Model)
    axes = {
        "up": {"kernel": (None, "h", "k"), "bias": ("h", "k")},
        "down": {"kernel": ("h", "k", None), "bias": (None,)},
    }
    return Case(fn, params, (normal(2, 6, 3),), axes)


def nnx_vae():
    """The noise of the latent code fixes it; flattened images are a product of fixed pixels and channels."""

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(2, 5, (3, 3), strides=2, rngs=rngs)
            self.mean, self.log_var = nnx.Linear(20, 3, rngs=rngs), nnx.Linear(20, 3, rngs=rngs)
            self.dense = nnx.Linear(3, 24, rngs=rngs)
            self.conv_transpose = nnx.ConvTranspose(6, 2, (3, 3), strides=(2, 2), rngs=rngs)

        def __call__(self, x, key):
            y = nnx.relu(self.conv(x)).reshape(2, -1)
            mean, log_var = self.mean(y), self.log_var(y)
            z = mean + jnp.exp(log_var / 2) * jax.random.normal(key, mean.shape)
            y = self.conv_transpose(nnx.relu(self.dense(z)).reshape(2, 2, 2, 6))
            return jnp.mean((x - y) ** 2) + jnp.mean(jnp.exp(log_var) + mean**2 - 1 - log_var)

    fn, params = nnx_function(Model)
    axes = {
        "conv": conv(None, "encoder"),
        "mean": dense((None, "encoder"), None),
        "log_var": dense((None, "encoder"), None),
        "dense": dense(None, (None, "decoder")),
        "conv_transpose": conv("decoder", None),
    }
    return Case(fn, params, (normal(2, 4, 4, 2), jax.random.key(0)), axes)


def nnx_dropout():
    """Dropped units are fixed, unless the whole layer is dropped at once."""

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.a, self.dropout_a = nnx.Linear(4, 6, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
            self.b, self.dropout_b = nnx.Linear(6, 5, rngs=rngs), nnx.Dropout(0.5, broadcast_dims=(1,), rngs=rngs)
            self.out = nnx.Linear(5, 3, rngs=rngs)

        def __call__(self, x):
            x = self.dropout_a(nnx.relu(self.a(x)))
            return self.out(self.dropout_b(nnx.relu(self.b(x))))

    fn, params = nnx_function(Model)
    return Case(fn, params, (normal(8, 4),), {"a": dense(None, None), "b": dense(None, "h"), "out": dense("h", None)})


def nnx_weight_norm():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.a = nnx.WeightNorm(nnx.Linear(4, 6, rngs=rngs), rngs=rngs)
            self.b = nnx.Linear(6, 3, rngs=rngs)

        def __call__(self, x):
            return self.b(nnx.relu(self.a(x)))

    fn, params = nnx_function(Model, nnx.Not(nnx.RngState))
    axes = {"a": {"layer_instance": dense(None, "h"), "scales": {("kernel",): ("h",)}}, "b": dense("h", None)}
    return Case(fn, params, (normal(5, 4),), axes)


CASES = (
    nnx_mlp_norms,
    nnx_cnn,
    nnx_resnet,
    nnx_grouped_conv,
    nnx_lora,
    nnx_einsum,
    nnx_vae,
    nnx_dropout,
    nnx_weight_norm,
)
