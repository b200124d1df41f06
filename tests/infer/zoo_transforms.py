"""Functions that use JAX's transformations and control flow."""

import jax
import jax.numpy as jnp
from zoo import Case
from zoo_arrays import normal
from zoo_plain import affine, dense, random


def stacked_layers():
    """Layers are stacked in one leaf and scanned. The layers keep their places."""

    def fn(params, x):
        def layer(x, p):
            return x + jnp.tanh(x @ p["w"] + p["b"]) @ p["v"], None

        return affine(params["out"], jax.lax.scan(layer, affine(params["in"], x), params["layers"])[0])

    shapes = {"w": (3, 6, 5), "b": (3, 5), "v": (3, 5, 6)}
    params = random({"in": dense(4, 6), "layers": shapes, "out": dense(6, 2)})
    layers = {"w": (None, "d", "h"), "b": (None, "h"), "v": (None, "h", "d")}
    return Case(fn, params, (normal(7, 4),), {"in": dense(None, "d"), "layers": layers, "out": dense("d", None)})


def rematerialized_blocks():
    def fn(params, x):
        @jax.checkpoint
        def block(p, x):
            return x + affine(p[1], jax.nn.gelu(affine(p[0], x)))

        x = affine(params["in"], x)
        for p in params["blocks"]:
            x = block(p, x)
        return affine(params["out"], x)

    def axes(i, d, o, *hidden):
        return {"in": dense(i, d), "blocks": [[dense(d, h), dense(h, d)] for h in hidden], "out": dense(d, o)}

    return Case(fn, random(axes(3, 6, 2, 5, 7)), (normal(4, 3),), axes(None, "d", None, "a", "b"))


MLP_SHAPES = [dense(3, 5), dense(5, 7), dense(7, 2)]
MLP = [dense(None, "a"), dense("a", "b"), dense("b", None)]


def forward(params, x, activation=jnp.tanh):
    for layer in params[:-1]:
        x = activation(affine(layer, x))
    return affine(params[-1], x)


def per_example_loss():
    def fn(params, x, y):
        return jax.vmap(lambda x, y: jnp.sum((forward(params, x) - y) ** 2))(x, y).mean()

    return Case(fn, random(MLP_SHAPES), (normal(4, 3), normal(4, 2)), MLP)


def nested_jit():
    def fn(params, x):
        return jax.jit(forward, static_argnums=2)(params, x, jax.nn.silu)

    return Case(fn, random(MLP_SHAPES), (normal(4, 3),), MLP)


def gradient_penalty():
    """Gradients with respect to the inputs, inside of the loss. The last units are summed, and permute."""

    def fn(params, x):
        critic = lambda x: jax.nn.softplus(forward(params, x)).sum()  # noqa: E731
        return jnp.mean((jnp.linalg.norm(jax.vmap(jax.grad(critic))(x), axis=-1) - 1) ** 2) + critic(x)

    return Case(fn, random(MLP_SHAPES), (normal(4, 3),), [*MLP[:2], dense("b", "out")])


def inner_gradient_step():
    """One step of gradient descent on the parameters inside of the loss (MAML)."""

    def fn(params, x, y):
        def loss(params, x):
            return jnp.mean((forward(params, x) - y) ** 2)

        adapted = jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(loss)(params, x[:4]))
        return loss(adapted, x[4:])

    return Case(fn, random(MLP_SHAPES), (normal(8, 3), normal(4, 2)), MLP)


EQUILIBRIUM_SHAPES = {"x": (3, 5), "h": (5, 5), "out": (5, 2)}
EQUILIBRIUM = {"x": (None, "h"), "h": ("h", "h"), "out": ("h", None)}


def equilibrium_while_loop():
    """Iterates to a fixed point, with at most 20 steps."""

    def fn(params, x):
        def moved(state):
            h, old, n = state
            return (n < 20) & (jnp.max(jnp.abs(h - old)) > 1e-3)

        def step(state):
            h, _, n = state
            return jnp.tanh(x @ params["x"] + 0.1 * h @ params["h"]), h, n + 1

        start = jnp.zeros((len(x), 5), x.dtype)
        return jax.lax.while_loop(moved, step, step((start, start, 0)))[0] @ params["out"]

    return Case(fn, random(EQUILIBRIUM_SHAPES), (normal(4, 3),), EQUILIBRIUM)


def equilibrium_fori_loop():
    def fn(params, x):
        step = lambda _, h: jnp.tanh(x @ params["x"] + h @ params["h"])  # noqa: E731
        return jax.lax.fori_loop(0, 4, step, jnp.zeros((len(x), 5), x.dtype)) @ params["out"]

    return Case(fn, random(EQUILIBRIUM_SHAPES), (normal(4, 3),), EQUILIBRIUM)


def branches():
    """Two ways through, each with units of its own, between shared layers."""

    def fn(params, x, flags):
        x = jnp.tanh(affine(params["in"], x))
        inner = lambda p: lambda x: affine(p[1], jax.nn.relu(affine(p[0], x)))  # noqa: E731
        return [affine(params["out"], jax.lax.cond(f, inner(params["yes"]), inner(params["no"]), x)) for f in flags]

    def axes(i, a, yes, no, b, o):
        branch = lambda h: [dense(a, h), dense(h, b)]  # noqa: E731
        return {"in": dense(i, a), "yes": branch(yes), "no": branch(no), "out": dense(b, o)}

    return Case(
        fn,
        random(axes(3, 5, 6, 7, 8, 2)),
        (normal(4, 3), jnp.asarray([True, False])),
        axes(None, "a", "yes", "no", "b", None),
    )


def custom_gradients():
    """An activation with a derivative of its own (a straight-through step), once forwards and once backwards.

    The last units are summed, and permute.
    """

    @jax.custom_vjp
    def step(x):
        return jnp.where(x > 0, x, 0.1 * x)

    step.defvjp(lambda x: (step(x), x), lambda x, g: (g * jax.nn.sigmoid(x),))

    def fn(params, x):
        value, slopes = jax.value_and_grad(lambda x: jnp.square(forward(params, x, step)).sum())(x)
        return value + jnp.sum(slopes**2)

    return Case(fn, random(MLP_SHAPES), (normal(4, 3),), [*MLP[:2], dense("b", "out")])


CASES = (
    stacked_layers,
    rematerialized_blocks,
    per_example_loss,
    nested_jit,
    gradient_penalty,
    inner_gradient_step,
    equilibrium_while_loop,
    equilibrium_fori_loop,
    branches,
    custom_gradients,
)
