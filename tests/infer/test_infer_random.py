"""Inference on random computation graphs: no name that it gives ever breaks the function."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from optax_unf import infer_spec

SHAPES = [(4,), (6,), (4, 6), (6, 4), (2, 3, 4), (4, 4), (6, 6)]


def _fit(x, size):
    """The last axis of x, cut or repeated to a size."""
    if x.ndim == 0:
        return jnp.broadcast_to(x, (size,))
    if x.shape[-1] >= size:
        return x[..., :size]
    return jnp.concatenate([x] * -(-size // x.shape[-1]), -1)[..., :size]


def _product(x, y, n):
    x, y = jnp.atleast_1d(x), jnp.atleast_2d(y.reshape(-1, y.shape[-1]) if y.ndim > 2 else y)
    return x @ y if x.shape[-1] == y.shape[0] else _fit(x, y.shape[1]) @ y.T


def _sum_of(x, y, n):
    if y.ndim and x.ndim and x.shape[-1] == y.shape[-1]:
        return x + (y if y.ndim == 1 or x.shape == y.shape else y.reshape(-1, y.shape[-1])[0])
    return x + y.mean()


def _scan(x, y, n):
    x = jnp.atleast_2d(x)
    return jax.lax.scan(lambda c, row: (jnp.tanh(c + row), c * row), jnp.zeros(x.shape[1:]), x)[n % 2]


def _split_axis(x, y, n):
    size = x.shape[-1] if x.ndim else 1
    return x.reshape(*x.shape[:-1], -1, 2) if x.ndim and size % 2 == 0 else x


def _choose(x, y, n):
    x = jnp.atleast_1d(x)
    best = jnp.argmax(x, -1)
    one_hot = jax.nn.one_hot(best, x.shape[-1])
    return one_hot * x if n % 2 else jnp.take(jnp.atleast_1d(y).reshape(-1), best % y.size)


OPERATIONS = {
    "product": _product,
    "sum": _sum_of,
    "times": lambda x, y, n: x * y if x.shape == y.shape else x * y.mean(),
    "relu": lambda x, y, n: jax.nn.relu(x),
    "tanh": lambda x, y, n: jnp.tanh(x),
    "softmax": lambda x, y, n: jax.nn.softmax(jnp.atleast_1d(x), -1),
    "transpose": lambda x, y, n: jnp.moveaxis(x, 0, -1) if x.ndim else x,
    "flatten": lambda x, y, n: x.reshape(-1),
    "split axis": _split_axis,
    "merge axes": lambda x, y, n: x.reshape(-1, *x.shape[2:]) if x.ndim > 1 else x,
    "reduce": lambda x, y, n: (jnp.sum, jnp.max, jnp.mean)[n % 3](x, n % x.ndim) if x.ndim else x,
    "slice": lambda x, y, n: x[..., n % 2 :: 1 + n % 2] if x.ndim else x,
    "concatenate": lambda x, y, n: jnp.concatenate([jnp.atleast_1d(x).reshape(-1), jnp.atleast_1d(y).reshape(-1)]),
    "halves": lambda x, y, n: jnp.split(x, 2, -1)[n % 2] if x.ndim and x.shape[-1] % 2 == 0 else x,
    "repeat": lambda x, y, n: jnp.repeat(x, 2, -1) if x.ndim else x,
    "tile": lambda x, y, n: jnp.tile(x, 2),
    "cumulative": lambda x, y, n: jnp.cumsum(x, n % x.ndim) if x.ndim else x,
    "sort": lambda x, y, n: jnp.sort(x, n % x.ndim) if x.ndim else x,
    "rank": lambda x, y, n: jnp.take_along_axis(jnp.atleast_1d(x), jnp.argsort(jnp.atleast_1d(x), -1), -1),
    "choose": _choose,
    "top": lambda x, y, n: jnp.take(jnp.atleast_1d(x), jax.lax.top_k(jnp.atleast_1d(x), 1)[1].reshape(-1), -1),
    "pad": lambda x, y, n: jnp.pad(jnp.atleast_1d(x), [(0, 0)] * (max(x.ndim, 1) - 1) + [(n % 2, 1)]),
    "roll": lambda x, y, n: jnp.roll(x, n, -1) if x.ndim else x,
    "positions": lambda x, y, n: x * jnp.arange(x.shape[-1]) if x.ndim else x,
    "identity": lambda x, y, n: x @ jnp.eye(x.shape[-1]) if x.ndim else x,
    "where": lambda x, y, n: jnp.where(x > 0, x, y if y.shape == x.shape else 0.5),
    "pairs": lambda x, y, n: x[..., :, None] * x[..., None, :] if 0 < x.ndim < 3 else x,
    "scan": _scan,
    "written": lambda x, y, n: jnp.atleast_1d(x).at[..., n % 3].set(1.0),
    "gradient": lambda x, y, n: jax.grad(lambda z: (jnp.sin(z) * jnp.cumsum(z, -1)).sum())(jnp.atleast_1d(x)),
    "vmap": lambda x, y, n: jax.vmap(lambda row: row / (1.0 + jnp.sum(row**2)))(jnp.atleast_1d(x)),
}
MAX_SIZE = 2000


def graph(steps):
    """A function that applies operations to the parameters and to what came before."""

    def fn(params, data):
        pool = [*params.values(), data]
        for name, i, j, n in steps:
            x = OPERATIONS[name](pool[-1 - i % len(pool)], pool[j % len(pool)], n)
            if 0 < x.size <= MAX_SIZE and x.ndim <= 4:
                pool.append(x)
        # What does not reduce to a number keeps its order.
        return pool[-1], sum(jnp.sum(jnp.sin(x)) for x in pool)

    return fn


steps_of_graphs = st.lists(
    st.tuples(st.sampled_from(sorted(OPERATIONS)), st.integers(0, 3), st.integers(0, 9), st.integers(0, 5)),
    min_size=1,
    max_size=7,
)


def no_name_breaks_the_graph(shapes, steps, seed):
    """Checks one graph; the number of names found in it."""
    rng = np.random.default_rng(seed)
    params = {f"p{n}": jnp.asarray(rng.normal(size=shape), jnp.float32) for n, shape in enumerate(shapes)}
    data = jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)
    fn = graph(steps)
    spec = infer_spec(fn, params, data)
    if not spec.sizes:
        return 0
    permuted = jax.jit(lambda g: fn(spec.permute(g, params), data))
    expected = permuted({name: jnp.arange(size) for name, size in spec.sizes.items()})
    for trial in range(3):
        g = {name: jnp.asarray(rng.permutation(size)) for name, size in spec.sizes.items()}
        for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(permuted(g)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * (1 + np.abs(a).max()), err_msg=f"{trial}\n{spec}")
    return len(spec.sizes)


def test_no_inferred_name_breaks_a_random_graph():
    found = []

    @settings(max_examples=120, deadline=None)
    @given(st.lists(st.sampled_from(SHAPES), min_size=1, max_size=3), steps_of_graphs, st.integers(0, 2**31))
    def check(shapes, steps, seed):
        found.append(no_name_breaks_the_graph(shapes, steps, seed))

    check()
    # A generator whose graphs had no symmetry would test nothing.
    assert len(found) >= 110
    assert np.mean(np.array(found) > 0) > 0.3
