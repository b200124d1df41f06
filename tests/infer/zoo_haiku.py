"""Models in dm-haiku. Kernels are `[*spatial, in, out]`."""

import functools

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from zoo import Case
from zoo_arrays import filled, normal, tokens

from optax_unf import Concat


def hk_function(forward, *args):
    """The forward function without its state."""
    transformed = hk.without_apply_rng(hk.transform(forward))
    return transformed.apply, filled(jax.eval_shape(transformed.init, jax.random.key(0), *args))


def hk_stateful_function(forward, *args):
    """Parameters are what haiku calls so and the running statistics, which an evaluation does not change."""
    transformed = hk.transform_with_state(forward)
    init = functools.partial(transformed.init, is_training=True)
    params, state = filled(jax.eval_shape(init, jax.random.key(0), *args))

    def fn(variables, *args):
        return transformed.apply(variables["params"], variables["state"], None, *args, False)[0]

    return fn, {"params": params, "state": state}


def linear(i, o):
    return {"w": (i, o), "b": (o,)}


def norm(d):
    return {"scale": (d,), "offset": (d,)}


def image_batch_norm(prefix, name, d):
    """Parameters and state of hk.BatchNorm on images. The biased average (hidden) and the counter are not read."""
    here = f"{prefix}{name}"
    params = {here: dict.fromkeys(("scale", "offset"), (None, None, None, d))}
    state = {
        f"{here}/~/{moment}_ema": {
            "average": (None, None, None, d),
            "hidden": (None, None, None, f"{here} {moment}"),
            "counter": (),
        }
        for moment in ("mean", "var")
    }
    return params, state


def hk_mlp():
    def forward(x):
        return hk.nets.MLP([6, 5, 3])(x)

    x = normal(2, 4)
    names = (None, "a", "b", None)
    axes = {f"mlp/~/linear_{i}": linear(names[i], names[i + 1]) for i in range(3)}
    return Case(*hk_function(forward, x), (x,), axes)


def hk_cnn():
    def forward(x, is_training):
        x = hk.Conv2D(4, 3)(x)
        x = jax.nn.relu(hk.BatchNorm(True, True, 0.9)(x, is_training))
        x = jax.nn.relu(hk.Conv2D(5, 3, stride=2)(x))
        return hk.Linear(2)(hk.Flatten()(x))

    x = normal(2, 4, 4, 3)
    params, state = image_batch_norm("", "batch_norm", "a")
    axes = {
        "params": params
        | {
            "conv2_d": {"w": (None, None, None, "a"), "b": ("a",)},
            "conv2_d_1": {"w": (None, None, "a", "b"), "b": ("b",)},
            "linear": linear((None, "b"), None),
        },
        "state": state,
    }
    return Case(*hk_stateful_function(forward, x), (x,), axes)


def hk_resnet():
    def forward(x, is_training):
        net = hk.nets.ResNet(
            (2, 1, 1, 1),
            2,
            bottleneck=False,
            channels_per_group=(3, 4, 5, 6),
            use_projection=(False, True, True, True),
            initial_conv_config={"output_channels": 3, "kernel_shape": 3, "stride": 1},
        )
        return net(x, is_training)

    x = normal(2, 8, 8, 2)
    streams = ("s0", "s1", "s2", "s3")
    parts = [
        ({"res_net/~/initial_conv": {"w": (None, None, None, "s0")}, "res_net/~/logits": linear("s3", None)}, {}),
        image_batch_norm("res_net/~/", "initial_batchnorm", "s0"),
    ]
    for group, block in ((0, 0), (0, 1), (1, 0), (2, 0), (3, 0)):
        here, m, o = f"res_net/~/block_group_{group}/~/block_{block}/~/", f"m{group}{block}", streams[group]
        i = streams[max(group - 1, 0)]
        parts.append(({here + "conv_0": {"w": (None, None, i, m)}, here + "conv_1": {"w": (None, None, m, o)}}, {}))
        parts += [image_batch_norm(here, "batchnorm_0", m), image_batch_norm(here, "batchnorm_1", o)]
        if group > 0:
            parts.append(({here + "shortcut_conv": {"w": (None, None, i, o)}}, {}))
            parts.append(image_batch_norm(here, "shortcut_batchnorm", o))
    axes = {
        "params": {k: v for params, _ in parts for k, v in params.items()},
        "state": {k: v for _, state in parts for k, v in state.items()},
    }
    return Case(*hk_stateful_function(forward, x), (x,), axes)


def hk_recurrent(core, core_axes):
    def forward(x):
        layer = core(5)
        x, _ = hk.dynamic_unroll(layer, x, layer.initial_state(x.shape[1]))
        return hk.Linear(2, name="out")(x)

    x = normal(4, 2, 3)
    return Case(*hk_function(forward, x), (x,), core_axes | {"out": linear("h", None)})


def hk_lstm():
    """One matrix multiplies the input and the hidden state, one after the other."""
    return hk_recurrent(hk.LSTM, {"lstm/linear": linear(Concat(None, "h"), (None, "h"))})


def hk_gru():
    gates = (None, "h")
    return hk_recurrent(hk.GRU, {"gru": {"w_i": (None, gates), "w_h": ("h", gates), "b": (gates,)}})


def hk_vanilla_rnn():
    axes = {"vanilla_rnn/linear": linear(None, "h"), "vanilla_rnn/linear_1": linear("h", "h")}
    return hk_recurrent(hk.VanillaRNN, axes)


def hk_attention_axes(path, d_in, d_out):
    qk, v = linear(d_in, ("heads", "qk")), linear(d_in, ("heads", "v"))
    return {f"{path}/query": qk, f"{path}/key": qk, f"{path}/value": v, f"{path}/linear": linear(("heads", "v"), d_out)}


def hk_attention():
    """Projections to `[heads * size]`, reshaped to heads. The sizes of heads and heads' sizes do not follow."""

    def forward(x):
        init = hk.initializers.VarianceScaling()
        return hk.MultiHeadAttention(3, 4, w_init=init, value_size=5, model_size=7)(x, x, x)

    x = normal(2, 6, 8)
    axes = hk_attention_axes("multi_head_attention", None, None)
    return Case(*hk_function(forward, x), (x,), axes, sizes={"heads": 3})


def hk_transformer():
    def forward(ids):
        x = hk.Embed(7, 6)(ids) + hk.get_parameter("positions", (5, 6), init=jnp.zeros)
        init = hk.initializers.VarianceScaling()
        attention = hk.MultiHeadAttention(2, 4, w_init=init, value_size=5, model_size=6)
        y = hk.LayerNorm(-1, True, True)(x)
        x = x + attention(y, y, y, mask=np.tril(np.ones((1, 1, 5, 5))))
        y = hk.LayerNorm(-1, True, True)(x)
        x = x + hk.Linear(6, name="down")(jax.nn.gelu(hk.Linear(9, name="up")(y)))
        return hk.Linear(7, name="out")(hk.LayerNorm(-1, True, True)(x))

    ids = tokens(2, 5, vocabulary=7)
    axes = {
        "embed": {"embeddings": (None, "d")},
        "~": {"positions": (None, "d")},
        "layer_norm": norm("d"),
        "layer_norm_1": norm("d"),
        "layer_norm_2": norm("d"),
        "up": linear("d", "m"),
        "down": linear("m", "d"),
        "out": linear("d", None),
    }
    axes |= hk_attention_axes("multi_head_attention", "d", "d")
    return Case(*hk_function(forward, ids), (ids,), axes, sizes={"heads": 2})


def hk_layer_stack():
    def forward(x):
        def layer(x):
            return x + hk.Linear(5, name="down")(jax.nn.relu(hk.Linear(7, name="up")(x)))

        x = hk.Linear(5, name="embed")(x)
        x = hk.layer_stack(3, name="stack")(layer)(x)
        return hk.Linear(2, name="out")(x)

    x = normal(2, 4)
    axes = {
        "embed": linear(None, "d"),
        "stack/up": {"w": (None, "d", "m"), "b": (None, "m")},
        "stack/down": {"w": (None, "m", "d"), "b": (None, "d")},
        "out": linear("d", None),
    }
    return Case(*hk_function(forward, x), (x,), axes)


CASES = (
    hk_mlp,
    hk_cnn,
    hk_resnet,
    hk_lstm,
    hk_gru,
    hk_vanilla_rnn,
    hk_attention,
    hk_transformer,
    hk_layer_stack,
)
