"""Random programs over many operations, and a check of their inferred specs by real permutations.

`python tests/infer/programs.py 2000` checks so many programs that the suite does not, and prints those that fail.
"""

import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from optax_unf import infer_spec

SIZES = (3, 4, 6)
MAX_SIZE = 600
# What is zero but for rounding, as the sum of all differences, is on one side of this.
OFF = 0.0137


def _fit(x, shape):
    """x cut or repeated to a shape."""
    return jnp.resize(x, shape)


def _matrix(x):
    return x.reshape(-1, x.shape[-1]) if x.ndim > 1 else x[None]


def _last(x, n):
    return -1 - n % x.ndim


def _fold(turn, start, x):
    return lax.scan(turn, start, x)


def _while(x, y, n):
    return lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, jnp.tanh(c[1] + jnp.roll(c[1], n, -1))), (0, x))[1]


def _top(x, y, n):
    best, at = lax.top_k(x, min(2, x.shape[-1]))
    return best if n % 2 else jnp.take_along_axis(_fit(y, x.shape), at, -1)


def _switch(x, y, n):
    return lax.switch(jnp.argmax(x.reshape(-1)) % 2, [lambda z: jnp.tanh(z), lambda z: z * 2], _fit(y, x.shape))


def _route(x, y, n):
    return jnp.take(_matrix(y), jnp.argmax(x, -1) % _matrix(y).shape[0], 0)


def _routed(x, y, n):
    """Rows by the largest entry, where there are as many as entries."""
    rows = _fit(y, (x.shape[-1], 3)) if n % 2 or y.shape[0] != x.shape[-1] else y
    return rows[jnp.argmax((x, -x, jnp.abs(x))[n % 3], -1)]


def _codes(x, y, n):
    """The nearest of the rows."""
    rows = _matrix(y)
    z = _fit(x, (rows.shape[1],)) if x.shape[-1] != rows.shape[1] else _matrix(x)[0]
    distance = jnp.sum((z - rows) ** 2, -1) if n % 2 else jnp.sum(rows**2, -1) - 2 * rows @ z
    return rows[jnp.argmin(distance)]


def _dot(x, y, n):
    x, y = _matrix(x), _matrix(y)
    return x @ y if x.shape[1] == y.shape[0] else x @ y.T if x.shape[1] == y.shape[1] else x @ _fit(y, (x.shape[1], 3))


def _convolve(x, y, n):
    return jnp.convolve(x.reshape(-1)[:12], y.reshape(-1)[:3], mode=("same", "valid", "full")[n % 3])


def _window(x, y, n):
    return lax.reduce_window(x, 0.0, lax.add, (1,) * (x.ndim - 1) + (2,), (1,) * x.ndim, ("VALID", "SAME")[n % 2])


def _segments(x, y, n):
    return jax.ops.segment_sum(
        x, jnp.arange(x.shape[0]) % 2 if n % 2 else jnp.argsort(x.reshape(x.shape[0], -1)[:, 0]), 5
    )


# Everything takes two arrays with at least one axis each, and a number.
OPERATIONS = {
    # entry by entry
    "add": lambda x, y, n: x + (y if x.shape == y.shape else y.mean()),
    "subtract": lambda x, y, n: x - (y if x.shape == y.shape else _fit(y, x.shape)),
    "multiply": lambda x, y, n: x * (y if x.shape == y.shape else y.sum()),
    "divide": lambda x, y, n: x / (1 + (y if x.shape == y.shape else y.mean()) ** 2),
    "negative": lambda x, y, n: -x,
    "abs": lambda x, y, n: jnp.abs(x),
    "relu": lambda x, y, n: jax.nn.relu(x),
    "leaky relu": lambda x, y, n: jax.nn.leaky_relu(x),
    "tanh": lambda x, y, n: jnp.tanh(x),
    "exp": lambda x, y, n: jnp.exp(jnp.clip(x, -5, 3)),
    "sigmoid": lambda x, y, n: jax.nn.sigmoid(x),
    "gelu": lambda x, y, n: jax.nn.gelu(x),
    "sin": lambda x, y, n: jnp.sin(x),
    "square": lambda x, y, n: x**2,
    "root": lambda x, y, n: jnp.sqrt(x**2 + 0.1),
    "sign": lambda x, y, n: jnp.sign(x - OFF),
    "round": lambda x, y, n: jnp.round(x + OFF),
    "clip": lambda x, y, n: jnp.clip(x, -0.5, 0.5),
    "shrink": lambda x, y, n: x - jnp.clip(x, -0.5, 0.5),
    "minus relu": lambda x, y, n: x - jax.nn.relu(x),
    "maximum": lambda x, y, n: jnp.maximum(x, y if x.shape == y.shape else 0.3),
    "where": lambda x, y, n: jnp.where(x > OFF, x, y if x.shape == y.shape else 0.5),
    "mask": lambda x, y, n: jnp.where(jnp.arange(x.shape[-1]) > n % 3, x, 0.0),
    "equal": lambda x, y, n: (x == jnp.max(x, -1, keepdims=True)) * x,
    "integers": lambda x, y, n: (x + OFF).astype(jnp.int32).astype(jnp.float32),
    # axes
    "transpose": lambda x, y, n: jnp.moveaxis(x, 0, -1),
    "flatten": lambda x, y, n: x.reshape(-1),
    "merge": lambda x, y, n: x.reshape(-1, *x.shape[2:]) if x.ndim > 1 else x,
    "split axis": lambda x, y, n: x.reshape(*x.shape[:-1], -1, 2) if x.shape[-1] % 2 == 0 else x,
    "split axis fast": lambda x, y, n: x.reshape(*x.shape[:-1], 2, -1) if x.shape[-1] % 2 == 0 else x,
    "expand": lambda x, y, n: x[..., None] * jnp.ones(2),
    "broadcast": lambda x, y, n: jnp.broadcast_to(x, (2, *x.shape)),
    "concatenate": lambda x, y, n: jnp.concatenate([x.reshape(-1), y.reshape(-1)]),
    "stack": lambda x, y, n: jnp.stack([x, y if x.shape == y.shape else jnp.zeros_like(x)], n % 2),
    "halves": lambda x, y, n: jnp.split(x, 2, -1)[n % 2] if x.shape[-1] % 2 == 0 else x,
    "slice": lambda x, y, n: x[..., n % 2 :],
    "stride": lambda x, y, n: x[..., n % 2 :: 2],
    "at": lambda x, y, n: x[n % x.shape[0]] if x.ndim > 1 else x,
    "flip": lambda x, y, n: jnp.flip(x, _last(x, n)),
    "roll": lambda x, y, n: jnp.roll(x, n, -1),
    "diagonal": lambda x, y, n: jnp.diagonal(_matrix(x)),
    "triangle": lambda x, y, n: jnp.tril(_matrix(x)),
    "shift tokens": lambda x, y, n: jnp.concatenate([jnp.zeros_like(x[:1]), x[:-1]]),
    # constants
    "pad": lambda x, y, n: jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(n % 3, 1)], constant_values=n % 2),
    "pad rows": lambda x, y, n: jnp.pad(x, [(1, 2)] + [(0, 0)] * (x.ndim - 1)),
    "pad edge": lambda x, y, n: jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(1, 1)], mode=("edge", "wrap", "reflect")[n % 3]),
    "tile": lambda x, y, n: jnp.tile(x, 2),
    "repeat": lambda x, y, n: jnp.repeat(x, 2, _last(x, n)),
    "positions": lambda x, y, n: x * jnp.arange(x.shape[-1]),
    "zeros": lambda x, y, n: jnp.concatenate([x, jnp.zeros_like(x)], _last(x, n)),
    "ones": lambda x, y, n: jnp.concatenate([jnp.ones_like(x), x], -1),
    "discounts": lambda x, y, n: x * jnp.cumprod(jnp.full(x.shape[-1], 0.9)),
    "identity": lambda x, y, n: x @ jnp.eye(x.shape[-1]),
    "one hot": lambda x, y, n: (
        jax.nn.one_hot(jnp.arange(3) % x.shape[-1], x.shape[-1]) @ x[..., None].reshape(x.shape[-1], -1)
    ),
    # reductions and products
    "sum": lambda x, y, n: jnp.sum(x, n % x.ndim) if x.ndim > 1 else x,
    "max": lambda x, y, n: jnp.max(x, n % x.ndim) if x.ndim > 1 else x,
    "mean": lambda x, y, n: x - jnp.mean(x, _last(x, n), keepdims=True),
    "product of entries": lambda x, y, n: x * jnp.prod(jnp.tanh(x), -1, keepdims=True),
    "softmax": lambda x, y, n: jax.nn.softmax(x, -1),
    "log softmax": lambda x, y, n: jax.nn.log_softmax(x, _last(x, n)),
    "normalize": lambda x, y, n: x / jnp.sqrt(1e-3 + jnp.sum(x**2, -1, keepdims=True)),
    "dot": _dot,
    "gram": lambda x, y, n: _matrix(x) @ _matrix(x).T,
    "outer": lambda x, y, n: x[..., :, None] * x[..., None, :] if x.ndim < 3 else x,
    "differences": lambda x, y, n: x[..., :, None] - x[..., None, :] if x.ndim < 3 else x,
    "neighbours": lambda x, y, n: x[..., 1:] - x[..., :-1],
    "convolve": _convolve,
    "window": _window,
    # order
    "cumsum": lambda x, y, n: jnp.cumsum(x, n % x.ndim),
    "cumprod": lambda x, y, n: jnp.cumprod(jnp.tanh(x), -1),
    "cummax": lambda x, y, n: lax.cummax(x, n % x.ndim),
    "cumlogsumexp": lambda x, y, n: lax.cumlogsumexp(x, x.ndim - 1, reverse=bool(n % 2)),
    "sort": lambda x, y, n: jnp.sort(x, n % x.ndim),
    "rank": lambda x, y, n: jnp.argsort(x, _last(x, n)) * 1.0,
    "sorted by": lambda x, y, n: jnp.take_along_axis(_fit(y, x.shape), jnp.argsort(x, -1), -1),
    "sort pairs": lambda x, y, n: lax.sort((x, _fit(y, x.shape)), num_keys=1 + n % 2)[1],
    "median": lambda x, y, n: jnp.median(x, -1, keepdims=True) * x,
    "argmax": lambda x, y, n: jnp.argmax(x, -1, keepdims=True) * 1.0,
    "choose": lambda x, y, n: jax.nn.one_hot(jnp.argmax(x, -1), x.shape[-1]) * x,
    "pick": lambda x, y, n: jnp.take_along_axis(_fit(y, x.shape), jnp.argmin(x, -1, keepdims=True), -1),
    "top": _top,
    "route": _route,
    "routed": _routed,
    "codes": _codes,
    "far index": lambda x, y, n: _fit(y, (x.shape[-1],))[(0 - jnp.argmax(x, -1)) % x.shape[-1]],
    "narrow index": lambda x, y, n: _fit(y, (x.shape[-1],))[jnp.argmax(x, -1).astype(bool).astype(int)],
    "flat argmax": lambda x, y, n: _fit(y, (x.size,))[jnp.argmax(x)][None] * x,
    # gather and scatter
    "gather": lambda x, y, n: x[jnp.array([0, 2, 1, 1]) % x.shape[0]],
    "gather last": lambda x, y, n: jnp.take(x, jnp.arange(n + 1) % x.shape[-1], -1),
    "dynamic slice": lambda x, y, n: lax.dynamic_slice_in_dim(x, n % 2, max(x.shape[-1] - 1, 1), x.ndim - 1),
    "update": lambda x, y, n: x.at[..., n % x.shape[-1]].set(1.0),
    "update slice": lambda x, y, n: lax.dynamic_update_slice_in_dim(x, x[..., :1] * 2, n % x.shape[-1], x.ndim - 1),
    "scatter add": lambda x, y, n: jnp.zeros((4, *x.shape[1:])).at[jnp.arange(x.shape[0]) % 3].add(x),
    "scatter at argmax": lambda x, y, n: _fit(y, (x.shape[-1],)).at[jnp.argmax(x, -1)].add(1.0),
    "segments": _segments,
    # control flow
    "scan": lambda x, y, n: _fold(lambda c, row: (jnp.tanh(c + row), c * row), jnp.zeros(x.shape[1:]), x)[n % 2],
    "scan counts": lambda x, y, n: _fold(lambda c, row: (c + 1, row * c), 1.0, x)[1],
    "scan shift": lambda x, y, n: _fold(
        lambda c, row: (jnp.concatenate([c[1:], row[None]]), c), jnp.zeros((3, *x.shape[1:])), x
    )[n % 2],
    "scan product": lambda x, y, n: _fold(
        lambda c, row: (jnp.tanh(c @ _fit(y, (x.shape[-1], x.shape[-1])) + row), c), jnp.zeros(x.shape[-1]), _matrix(x)
    )[n % 2],
    "map": lambda x, y, n: lax.map(lambda row: row * jnp.max(row), x),
    "map choose": lambda x, y, n: lax.map(lambda r: _fit(y, (r.size,))[jnp.argmax(jax.nn.relu(r))], _matrix(x)),
    "loop": lambda x, y, n: lax.fori_loop(0, 3, lambda i, c: jnp.sin(c) + x * i, x),
    "loop roll": lambda x, y, n: lax.fori_loop(0, 2, lambda i, c: jnp.roll(c, 1, -1) * x, x),
    "loop stencil": lambda x, y, n: lax.fori_loop(0, 2, lambda i, c: c.at[..., 1:].add(c[..., :-1]), x),
    "loop write": lambda x, y, n: lax.fori_loop(0, x.shape[0], lambda i, c: c.at[i].set(x[i] * 2), jnp.zeros_like(x)),
    "loop flip": lambda x, y, n: lax.fori_loop(0, 3, lambda i, c: c[..., ::-1] + 1, x),
    "while": _while,
    "cond": lambda x, y, n: lax.cond(x.sum() > OFF, lambda z: z * 2, lambda z: jnp.flip(z, -1) if n % 2 else -z, x),
    "switch": _switch,
    "vmap": lambda x, y, n: jax.vmap(lambda row: row / (1.0 + jnp.sum(row**2)))(x),
    "gradient": lambda x, y, n: jax.grad(lambda z: jnp.sum(jnp.sin(z) * jnp.cumsum(z, -1)))(x),
    "gradient of max": lambda x, y, n: jax.grad(lambda z: jnp.sum(jnp.max(z, -1) ** 2))(x),
    "gradient of sort": lambda x, y, n: jax.grad(lambda z: jnp.sum(jnp.sort(z, -1) ** 2 * 0.5))(x),
    "checkpoint": lambda x, y, n: jax.checkpoint(lambda z: jnp.tanh(z) * z)(x),
    "associative scan": lambda x, y, n: lax.associative_scan(jnp.add, x, axis=n % x.ndim),
    # random draws of one key
    "noise": lambda x, y, n: x + jax.random.normal(jax.random.key(n), x.shape[n % x.ndim :]),
    "dropout": lambda x, y, n: x * jax.random.bernoulli(jax.random.key(n), 0.5, x.shape),
    "gamma": lambda x, y, n: x * jax.random.gamma(jax.random.key(n), 1.0 + jnp.abs(x)),
}


def random_steps(rng):
    """Operations, each with the numbers of its operands and one of its own."""
    return [
        (str(rng.choice(list(OPERATIONS))), int(rng.integers(4)), int(rng.integers(9)), int(rng.integers(6)))
        for _ in range(rng.integers(1, 5))
    ]


def steps_of(seed):
    """The names of the operations of a program."""
    return [name for name, *_ in random_steps(np.random.default_rng(seed))]


def program(rng, steps, data):
    """A random program: parameters, and a function of them and of data."""
    shapes = [
        tuple(rng.choice(SIZES, rng.integers(1, 4) - (rng.random() < 0.5)).tolist()) or (4,)
        for _ in range(rng.integers(1, 4))
    ]
    params = {f"p{n}": jnp.asarray(rng.normal(size=shape), jnp.float32) for n, shape in enumerate(shapes)}
    shown = rng.random() < 0.2

    def values(params, data):
        pool = [*params.values(), data]
        for name, i, j, n in steps:
            x, y = pool[-1 - i % len(pool)], pool[j % len(pool)]
            out = OPERATIONS[name](jnp.atleast_1d(x), jnp.atleast_1d(y), n)
            if 0 < out.size <= MAX_SIZE and out.ndim <= 4:
                pool.append(jnp.atleast_1d(out))
        return pool

    def fn(params, data):
        """The last value is weighed entry by entry with parameters of its own, so that a false name changes the sum."""
        pool = values({name: x for name, x in params.items() if name != "weight"}, data)
        weighed = jnp.sum(params["weight"] * jnp.sin(pool[-1]))
        return weighed, pool[-1] if shown else 0.0, [jnp.sum(jnp.cos(x)) for x in pool]

    last = jax.eval_shape(values, params, data)[-1]
    return {**params, "weight": jnp.asarray(rng.normal(size=last.shape), jnp.float32)}, fn


def checked(seed):
    """Checks one program by real permutations; the number of its names."""
    rng = np.random.default_rng(seed)
    steps = random_steps(rng)
    data = jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)
    params, fn = program(rng, steps, data)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="infer_spec has no rule")
        spec = infer_spec(fn, params, data)
    if spec.sizes:
        run = jax.jit(lambda permutation, params: fn(spec.permute(permutation, params), data))
        identity = {name: jnp.arange(size) for name, size in spec.sizes.items()}
        for _ in range(3):
            fresh = {k: jnp.asarray(rng.normal(size=p.shape), jnp.float32) for k, p in params.items()}
            permutation = {name: jnp.asarray(rng.permutation(size)) for name, size in spec.sizes.items()}
            for a, b in zip(*map(jax.tree.leaves, (run(identity, fresh), run(permutation, fresh))), strict=True):
                np.testing.assert_allclose(
                    a, b, rtol=2e-3, atol=2e-3 * (1 + np.abs(a).max()), err_msg=f"{steps}\n{spec}"
                )
    return len(spec.sizes)


def main():
    count, failed, names = int(sys.argv[1]), 0, 0
    for seed in range(10_000, 10_000 + count):
        try:
            names += checked(seed) > 0
        except Exception as error:
            failed += 1
            print(seed, type(error).__name__, str(error)[-900:], flush=True)
    print(f"{count} programs over {len(OPERATIONS)} operations, {names} with names, {failed} failed")


if __name__ == "__main__":
    main()
