"""Models without recurrence or attention in plain JAX. Kernels are `[in, out]`."""

import jax
import jax.numpy as jnp
from zoo import Case
from zoo_arrays import cross_entropy, filled, normal, tokens


def random(shapes):
    """Normal numbers for a tree of shapes."""
    is_shape = lambda node: isinstance(node, tuple)  # noqa: E731
    return filled(jax.tree.map(lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32), shapes, is_leaf=is_shape))


def dense(i, o):
    return {"w": (i, o), "b": (o,)}


def affine(layer, x):
    return x @ layer["w"] + layer["b"]


def mlp():
    def fn(params, x):
        x = jax.nn.relu(affine(params[0], x))
        x = jnp.tanh(affine(params[1], x))
        return affine(params[2], x)

    params = random([dense(3, 5), dense(5, 7), dense(7, 2)])
    return Case(fn, params, (normal(4, 3),), [dense(None, "a"), dense("a", "b"), dense("b", None)])


def mlp_loss():
    """A loss with weight decay. The classes are fixed by the labels."""

    def fn(params, x, labels):
        logits = jax.nn.gelu(x @ params["in"]) @ params["out"]
        return cross_entropy(logits, labels) + 0.1 * sum(jnp.sum(w**2) for w in params.values())

    params = random({"in": (3, 5), "out": (5, 4)})
    return Case(fn, params, (normal(6, 3), tokens(6, vocabulary=4)), {"in": (None, "h"), "out": ("h", None)})


def maxout():
    """Pieces permute within their unit, here alike in every unit."""

    def fn(params, x):
        return (x @ params["in"] + params["b"]).reshape(-1, 5, 2).max(-1) @ params["out"]

    params = random({"in": (3, 10), "b": (10,), "out": (5, 4)})
    axes = {"in": (None, ("h", "piece")), "b": (("h", "piece"),), "out": ("h", None)}
    return Case(fn, params, (normal(4, 3),), axes)


def reversed_units():
    """Only some permutations commute with the reversal, and no name says which."""

    def fn(params, x):
        h = jnp.tanh(x @ params["in"])
        return (h + h[:, ::-1]) @ params["out"]

    params = random({"in": (3, 5), "out": (5, 2)})
    return Case(fn, params, (normal(4, 3),), {"in": (None, None), "out": (None, None)})


def dropout():
    """The drawn mask tells the units of the second layer apart."""

    def fn(params, x, key):
        x = jax.nn.relu(affine(params[0], x))
        x = jax.nn.relu(affine(params[1], x))
        x = jnp.where(jax.random.bernoulli(key, 0.5, x.shape), x / 0.5, 0)
        return affine(params[2], x)

    params = random([dense(3, 5), dense(5, 7), dense(7, 2)])
    return Case(fn, params, (normal(4, 3), jax.random.key(0)), [dense(None, "a"), dense("a", None), dense(None, None)])


def swiglu():
    def fn(params, x):
        return (jax.nn.silu(x @ params["gate"]) * (x @ params["up"])) @ params["down"]

    params = random({"gate": (3, 7), "up": (3, 7), "down": (7, 2)})
    return Case(fn, params, (normal(4, 3),), {"gate": (None, "h"), "up": (None, "h"), "down": ("h", None)})


def swiglu_fused():
    def fn(params, x):
        gate, up = jnp.split(x @ params["in"], 2, axis=-1)
        return (jax.nn.silu(gate) * up) @ params["down"]

    params = random({"in": (3, 14), "down": (7, 2)})
    return Case(fn, params, (normal(4, 3),), {"in": (None, (None, "h")), "down": ("h", None)})


EXPERTS = {"gate": (None, "e"), "in": ("e", None, "h"), "b": ("e", "h"), "out": ("e", "h", None)}


def experts_dense():
    """Experts permute, and hidden units alike in all experts."""

    def fn(params, x):
        gates = jax.nn.softmax(x @ params["gate"])
        h = jax.nn.relu(jnp.einsum("ni,eih->neh", x, params["in"]) + params["b"])
        return jnp.einsum("ne,neh,eho->no", gates, h, params["out"])

    params = random({"gate": (4, 3), "in": (3, 4, 5), "b": (3, 5), "out": (3, 5, 2)})
    return Case(fn, params, (normal(6, 4),), EXPERTS)


def experts_top_k():
    """Each row goes to the two experts of the largest gates; ties aside, experts still permute."""

    def fn(params, x):
        gates, index = jax.lax.top_k(x @ params["gate"], 2)
        combine = jnp.einsum("nk,nke->ne", jax.nn.softmax(gates), jax.nn.one_hot(index, 3))
        h = jax.nn.relu(jnp.einsum("ni,eih->neh", x, params["in"]) + params["b"])
        return jnp.einsum("ne,neh,eho->no", combine, h, params["out"])

    params = random({"gate": (4, 3), "in": (3, 4, 5), "b": (3, 5), "out": (3, 5, 2)})
    return Case(fn, params, (normal(6, 4),), EXPERTS)


def deeponet():
    """Branch and trunk meet in an inner product."""

    def fn(params, sensors, points):
        branch = affine(params["branch"][1], jnp.tanh(affine(params["branch"][0], sensors)))
        trunk = jnp.tanh(affine(params["trunk"][1], jnp.tanh(affine(params["trunk"][0], points))))
        return branch @ trunk.T + params["bias"]

    params = random(
        {"branch": [dense(3, 5), dense(5, 4)], "trunk": [dense(2, 6), dense(6, 4)], "bias": ()},
    )
    axes = {"branch": [dense(None, "b"), dense("b", "p")], "trunk": [dense(None, "t"), dense("t", "p")], "bias": ()}
    return Case(fn, params, (normal(8, 3), normal(9, 2)), axes)


def fourier_coordinates():
    """A frequency moves with its sine and its cosine, which stand side by side."""

    def fn(params, x):
        phase = x @ params["frequencies"]
        features = jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], axis=-1)
        return affine(params["out"], jnp.sin(30 * affine(params["in"], features)))

    params = random({"frequencies": (2, 3), "in": dense(6, 5), "out": dense(5, 4)})
    axes = {"frequencies": (None, "f"), "in": dense((None, "f"), "h"), "out": dense("h", None)}
    return Case(fn, params, (normal(8, 2),), axes)


def autoencoder_variational():
    """The noise, an argument, tells the latents apart."""

    def fn(params, x, noise):
        h = jnp.tanh(affine(params["encoder"], x))
        mean, log_variance = affine(params["mean"], h), affine(params["spread"], h)
        z = mean + jnp.exp(log_variance / 2) * noise
        y = affine(params["decoder"][1], jnp.tanh(affine(params["decoder"][0], z)))
        divergence = jnp.sum(jnp.exp(log_variance) + mean**2 - 1 - log_variance, axis=-1) / 2
        return jnp.mean(jnp.sum((y - x) ** 2, axis=-1) + divergence)

    sizes = {"encoder": dense(4, 5), "mean": dense(5, 3), "spread": dense(5, 3), "decoder": [dense(3, 6), dense(6, 4)]}
    axes = {
        "encoder": dense(None, "e"),
        "mean": dense("e", None),
        "spread": dense("e", None),
        "decoder": [dense(None, "d"), dense("d", None)],
    }
    return Case(fn, random(sizes), (normal(7, 4), normal(7, 3, seed=1)), axes)


def adapters_low_rank():
    """Frozen kernels are parameters too; the ranks are hidden units of their own."""

    def fn(params, x):
        for layer in params:
            x = jnp.tanh(x @ layer["base"] + x @ layer["down"] @ layer["up"])
        return x

    def adapted(i, r, o):
        return {"base": (i, o), "down": (i, r), "up": (r, o)}

    params = random([adapted(3, 2, 5), adapted(5, 4, 6)])
    return Case(fn, params, (normal(7, 3),), [adapted(None, "r", "h"), adapted("h", "s", None)])


CASES = (
    mlp,
    mlp_loss,
    maxout,
    reversed_units,
    dropout,
    swiglu,
    swiglu_fused,
    experts_dense,
    experts_top_k,
    deeponet,
    fourier_coordinates,
    autoencoder_variational,
    adapters_low_rank,
)
