"""Inference ends, in time that grows with the function: loops that shift what they carry, long chains, many indices."""

import collections
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from optax_unf import check_spec, infer_spec
from optax_unf.infer import control

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


PARAMS = {"w": normal(5, 6), "u": normal(6, 4)}
XS = normal(8, 5)


def hidden(p, xs):
    return jnp.tanh(xs @ p["w"])


def window(p, xs):
    def turn(c, x):
        return jnp.concatenate([c[1:], x[None]]), c.sum(0)

    return lax.scan(turn, jnp.zeros((3, 6)), hidden(p, xs))[1]


def step_of_mamba(p, xs):
    def turn(carry, x):
        buffer, state = carry
        buffer = jnp.roll(buffer, -1, 0).at[-1].set(x)
        state = 0.9 * state + jnp.sum(buffer * jnp.arange(3.0)[:, None], 0)
        return (buffer, state), state * x

    return lax.scan(turn, (jnp.zeros((3, 6)), jnp.zeros(6)), hidden(p, xs))[1]


def pipeline(p, xs):
    def turn(i, c):
        return jnp.tanh(jnp.concatenate([xs[i % 8][None] @ p["w"], c[:-1]]))

    return lax.fori_loop(0, 10, turn, jnp.zeros((4, 6)))


def stencil(p, xs):
    return lax.fori_loop(0, 5, lambda i, h: h.at[1:-1].set((h[:-2] + h[2:]) / 2), hidden(p, xs))


def convolved(p, xs):
    def turn(i, h):
        return jax.vmap(lambda column: jnp.convolve(column, jnp.ones(3), "same"), 1, 1)(h)

    return lax.fori_loop(0, 3, turn, hidden(p, xs))


def regrouped(p, xs):
    def turn(h):
        return h.reshape(2, 4, 6).swapaxes(0, 1).reshape(8, 6)

    return lax.while_loop(lambda c: c[0] < 4, lambda c: (c[0] + 1, turn(c[1])), (0, hidden(p, xs)))[1]


def teacher_forced(p, xs):
    def turn(c, x):
        c = jnp.concatenate([x[None], c[:-1]])
        return c, c[-1]

    return lax.scan(turn, jnp.zeros((5, 6)), jnp.pad(hidden(p, xs), ((1, 0), (0, 0)))[:-1])[1]


def nested(p, xs):
    def inner(i, c):
        return jnp.roll(c, 1, 0)

    return lax.fori_loop(0, 3, lambda i, c: lax.fori_loop(0, 2, inner, c) * 0.5, hidden(p, xs))


LOOPS = [window, step_of_mamba, pipeline, stencil, convolved, regrouped, teacher_forced, nested]


@pytest.mark.slow
@pytest.mark.parametrize("loop", LOOPS)
def test_loops_that_shift_an_axis_settle(loop):
    """Positions are in order; units, which the loop does not mix, permute."""

    def loss(p, xs):
        return jnp.sum((loop(p, xs) @ p["u"]) ** 2)

    spec = infer_spec(loss, PARAMS, XS)
    assert list(spec.sizes.values()) == [6, 4]
    check_spec(loss, spec, PARAMS, XS, key=KEY)


@pytest.mark.slow
@pytest.mark.parametrize(
    "body",
    [
        lambda c: jnp.concatenate([c[1:], c[:1]]),
        lambda c: jnp.roll(c, 2),
        lambda c: jnp.flip(c),
        lambda c: c.at[1:].add(c[:-1]),
        lambda c: c.reshape(2, 3).T.reshape(-1),
        lambda c: jnp.concatenate([c[::2], c[1::2]]),
        lambda c: jnp.cumsum(c),
        lambda c: jnp.sort(c),
        lambda c: jnp.convolve(c, jnp.array([1.0, 0.5]), "same"),
        lambda c: jnp.pad(c, 1)[2:],
    ],
    ids=["shift", "roll", "flip", "stencil", "regroup", "interleave", "cumsum", "sort", "convolve", "fill"],
)
@pytest.mark.parametrize("start", [lambda p: p["a"], lambda p: jnp.zeros(6), lambda p: jnp.pad(p["a"][:3], 3)[3:]])
def test_an_axis_of_parameters_that_is_shifted(body, start):
    def loss(p):
        states = lax.fori_loop(0, 2, lambda i, c: body(c) + 0.1, start(p))
        return jnp.sum(p["b"] * states)

    params = {"a": normal(6), "b": normal(6)}
    check_spec(loss, infer_spec(loss, params), params, key=KEY, trials=1)


def test_a_long_axis_that_is_shifted():
    def loss(p, xs):
        final = lax.scan(lambda c, x: (jnp.concatenate([c[1:], x[None]]), None), jnp.zeros(1000), xs)[0]
        return jnp.sum(p["a"]) * jnp.sum(final)

    assert list(infer_spec(loss, {"a": jnp.ones(3)}, jnp.ones(50)).sizes.values()) == [3]


def test_ctc():
    def loss(p, x, labels):
        logits = jnp.tanh(x @ p["w"]) @ p["u"]
        return optax.ctc_loss(logits[None], jnp.zeros((1, len(x))), labels[None], jnp.zeros((1, 3))).sum()

    args = (XS, jnp.array([1, 2, 3]))
    spec = infer_spec(loss, PARAMS, *args)
    assert list(spec.sizes.values()) == [6]
    check_spec(loss, spec, PARAMS, *args, key=KEY)


def test_the_bound_on_turns_fixes_what_still_moves(monkeypatch):
    def loss(p, xs):
        return jnp.sum(p["c"]) * jnp.sum((window(p, xs) @ p["u"]) ** 2)

    monkeypatch.setattr(control, "_MAX_TURNS", 1)
    params = {**PARAMS, "c": normal(3)}
    with pytest.warns(UserWarning, match="gives up on a loop"):
        spec = infer_spec(loss, params, XS)
    assert sorted(spec.sizes.values()) == [3, 4]
    check_spec(loss, spec, params, XS, key=KEY)


# Size.


def struct(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


@pytest.mark.slow
def test_many_residual_blocks():
    def fn(p, x):
        x = jnp.tanh(x @ p["in"])
        for q in p["blocks"]:
            x = x + jnp.tanh(x @ q["a"]) @ q["b"]
        return x @ p["out"]

    blocks = [{"a": struct(4, 3), "b": struct(3, 4)} for _ in range(400)]
    spec = infer_spec(fn, {"in": struct(3, 4), "blocks": blocks, "out": struct(4, 2)}, struct(6, 3))
    assert len(spec.sizes) == 401


@pytest.mark.slow
@pytest.mark.parametrize(
    "rows",
    [
        lambda x: list(x),
        lambda x: [x[t] for t in range(400)],
        lambda x: [r[0] for r in jnp.split(x, 400)],
        lambda x: [x[-1 - t] for t in range(400)],
        lambda x: [(x := jnp.concatenate([x[1:], x[:1]]))[0] for _ in range(400)],
    ],
    ids=["unstacked", "indexed", "split", "from the end", "rotated"],
)
def test_an_axis_in_its_positions(rows):
    def fn(p):
        return sum(jnp.sum(jnp.tanh(row)) * (t + 1.0) for t, row in enumerate(rows(p["x"])))

    spec = infer_spec(fn, {"x": struct(400, 3)})
    assert [leaf.axes for leaf in spec.leaves] == [(None, "x:1")]


READS = {
    "rows": lambda x, t: x[t].reshape(-1)[:3],
    "pairs": lambda x, t: x[2 * t : 2 * t + 2].sum(0),
    "columns": lambda x, t: x.T[:, t],
    "scattered": lambda x, t: x[(t * 7) % x.shape[0]],
    "windows": lambda x, t: x[t : t + 3].sum(0),
}


def calls(read, steps, learned):
    """Calls of Python functions during inference, but for those of tracing: its work, whatever the machine's load."""

    def fn(p, x):
        h = jnp.zeros(5)
        for t in range(steps):
            h = jnp.tanh(h @ p["w"] + read(p["x"] if learned else x, t) @ p["i"])
        return h @ p["o"]

    params = {"w": struct(5, 5), "i": struct(3, 5), "o": struct(5, 2), "x": struct(2 * steps, 3)}
    closed = jax.make_jaxpr(fn)(params, struct(2 * steps, 3))
    counted = collections.Counter()
    with mock.patch.object(jax, "make_jaxpr", return_value=lambda *args: closed):
        sys.setprofile(lambda frame, event, arg: counted.update([event]))
        try:
            infer_spec(fn, params, struct(2 * steps, 3))
        finally:
            sys.setprofile(None)
    return counted["call"] + counted["c_call"]


@pytest.mark.slow
@pytest.mark.parametrize("read", READS)
def test_work_is_linear_in_unrolled_steps(read):
    few, many = (calls(READS[read], steps, learned=read != "rows") for steps in (30, 120))
    assert many < 5 * few
