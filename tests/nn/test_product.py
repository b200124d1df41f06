"""Parts of an array side by side: their values, their derivatives, and what the compiler makes of them."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_unf._xla import apart

FEW, MANY = (3, 1, 4), (3, 1, 2) * 8


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("sizes", [FEW, MANY])
def test_parts_are_what_numpy_splits(sizes, axis):
    shape = (sum(sizes), 5) if axis == 0 else (5, sum(sizes))
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    expected = np.split(x, np.cumsum(sizes)[:-1], axis)
    for parts in (apart(jnp.asarray(x), sizes, axis), jax.jit(lambda x: apart(x, sizes, axis))(x)):
        assert len(parts) == len(expected)
        for part, wanted in zip(parts, expected, strict=True):
            np.testing.assert_array_equal(part, wanted)


@pytest.mark.parametrize("sizes", [FEW, MANY])
def test_parts_have_the_derivatives_of_a_linear_map(sizes):
    x, v = (np.random.default_rng(seed).normal(size=(sum(sizes), 2)).astype(np.float32) for seed in (0, 1))

    def weighted(x):
        return [(n + 1.0) * part for n, part in enumerate(apart(x, sizes))]

    weights = np.repeat(np.arange(1.0, len(sizes) + 1.0), sizes)[:, None]
    _, tangents = jax.jvp(weighted, (x,), (v,))
    np.testing.assert_allclose(np.concatenate(tangents), weights * v, rtol=1e-6)
    gradient = jax.grad(lambda x: sum(part.sum() for part in weighted(x)))(x)
    np.testing.assert_allclose(gradient, np.broadcast_to(weights, x.shape), rtol=1e-6)
    each = jax.vmap(lambda x: apart(x, sizes))(np.stack([x, v]))
    for part, one, other in zip(each, apart(jnp.asarray(x), sizes), apart(jnp.asarray(v), sizes), strict=True):
        np.testing.assert_array_equal(part, [one, other])


@pytest.mark.xla
def test_the_gradient_of_many_parts_puts_them_together():
    """That of slices would add up as many arrays of zeros."""

    def loss(x):
        return sum(jnp.sin(part).sum() for part in apart(x, MANY))

    text = jax.jit(jax.grad(loss)).lower(jnp.ones((sum(MANY), 2))).as_text()
    assert "stablehlo.concatenate" in text
    assert "stablehlo.pad" not in text
    assert "dynamic_update_slice" not in text


@pytest.mark.xla
def test_what_takes_one_of_many_parts_is_compiled_once():
    """The places of the parts are data: the compiled code of all parts of a shape is the same."""

    @jax.jit
    def taken(x):
        return [jnp.tanh(part) for part in apart(jnp.sin(x), (2,) * 20)]

    with jax.default_device(jax.devices("cpu")[0]):
        text = taken.lower(jnp.ones((40, 3))).compile().as_text()
    bodies = [body.partition("{\n")[2] for body in text.split("\n\n") if "tanh(" in body and "ENTRY" not in body]
    bodies = [re.sub(r", metadata=\{[^}]*\}|, backend_config=.*", "", body) for body in bodies]
    assert len(bodies) == 20
    # Names of instructions, numbered as they occur, are all that may differ.
    found = set()
    for body in bodies:
        names: dict[str, str] = {}
        found.add(re.sub(r"%[\w.-]+", lambda name, names=names: names.setdefault(name[0], f"%{len(names)}"), body))
    assert len(found) == 1
