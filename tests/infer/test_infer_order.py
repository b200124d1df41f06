"""Operations for which order matters, and draws of one key: what is uniform along an axis does not stay so."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from optax_unf import check_spec, infer_spec

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def axes_of(spec):
    return {leaf.path: leaf.axes for leaf in spec.leaves}


ARRAYS = {
    "ones": lambda p: jnp.ones(6),
    "number": lambda p: jnp.broadcast_to(jnp.sum(p), (6,)),
    "pad": lambda p: jnp.pad(p, (0, 3)),
    "pad before": lambda p: jnp.pad(p, (3, 0), constant_values=1.0),
    "zeros": lambda p: jnp.concatenate([jnp.zeros(3), p]),
    "tile": lambda p: jnp.tile(p, 2),
    "repeat": lambda p: jnp.repeat(p, 2),
    "padded pairs": lambda p: jnp.pad(p[:2, None] * jnp.ones(2), ((1, 0), (0, 0))).reshape(-1),
}
ORDERED = {
    "cumsum": jnp.cumsum,
    "reverse cumsum": lambda x: lax.cumsum(x, reverse=True),
    "cumprod": lambda x: jnp.cumprod(x * 0.9),
    "cummax": lax.cummax,
    "cumlogsumexp": lax.cumlogsumexp,
    "flip": jnp.flip,
    "associative scan": lambda x: lax.associative_scan(jnp.add, x),
    "roll": lambda x: jnp.roll(x, 1),
    "scan": lambda x: lax.scan(lambda c, y: (0.5 * c + y + 1, c), 0.0, x)[1],
    "scan that counts": lambda x: lax.scan(lambda c, y: (c + 1.0, c), 0.0, x)[1],
    "map after a scan": lambda x: lax.map(lambda y: 2 * y, lax.scan(lambda c, y: (c + y, c), 1.0, x)[1]),
    "loop that writes": lambda x: lax.fori_loop(0, 6, lambda i, c: c.at[i].set(x[i] + i), jnp.zeros(6)),
    "scatter": lambda x: x.at[jnp.array([1, 3])].add(2.0),
    "neighbours": lambda x: x - jnp.concatenate([x[1:], x[:1]]),
    "convolution": lambda x: jnp.convolve(x, jnp.array([1.0, 2.0, 3.0]), "same"),
    "slice": lambda x: lax.dynamic_update_slice(x, x[:2] * 3, (2,)),
}


@pytest.mark.slow
@pytest.mark.parametrize("array", ARRAYS)
@pytest.mark.parametrize("operation", ORDERED)
def test_order_of_what_is_uniform_in_parts(array, operation):
    def fn(p):
        return jnp.sum(p["q"] * ORDERED[operation](ARRAYS[array](p["p"])))

    params = {"p": normal(3), "q": normal(6)}
    check_spec(fn, infer_spec(fn, params), params, key=KEY, trials=1)


def test_reversals_of_what_is_uniform_lose_nothing():
    spec = infer_spec(lambda p: jnp.sum(p * jnp.flip(jnp.ones(6))), normal(6))
    assert list(spec.sizes.values()) == [6]


def test_parts_of_padding_permute_apart():
    def fn(p):
        return jnp.sum(p["q"] * jnp.pad(p["p"], (2, 3), constant_values=2.0))

    params = {"p": normal(4), "q": normal(9)}
    spec = infer_spec(fn, params)
    assert sorted(spec.sizes.values()) == [2, 3, 4]
    check_spec(fn, spec, params, key=KEY)


def test_two_paddings_together():
    def fn(p):
        return jnp.sum(p["q"] * (jnp.pad(jnp.ones(2), (4, 0)) + jnp.pad(jnp.ones(3), (3, 0))))

    params = {"q": normal(6)}
    spec = infer_spec(fn, params)
    assert sorted(spec.sizes.values()) == [2, 3]
    check_spec(fn, spec, params, key=KEY)


# Randomness.

DRAWS = {
    "gamma": lambda key, a: jax.random.gamma(key, a),
    "loggamma": lambda key, a: jax.random.loggamma(key, a),
    "beta": lambda key, a: jax.random.beta(key, a, 2.0),
    "dirichlet": lambda key, a: jax.random.dirichlet(key, a),
    "t": lambda key, a: jax.random.t(key, a, a.shape),
    "chisquare": lambda key, a: jax.random.chisquare(key, a),
    "poisson": lambda key, a: jax.random.poisson(key, 3 * a) * 1.0,
    "normal": lambda key, a: a * jax.random.normal(key, a.shape),
    "truncated": lambda key, a: jax.random.truncated_normal(key, -a, a),
    "categorical": lambda key, a: jax.nn.one_hot(jax.random.categorical(key, a), 6),
    "permutation": lambda key, a: jax.random.permutation(key, a),
    "choice": lambda key, a: jax.random.choice(key, a, (6,)),
    "seeds": lambda key, a: jax.vmap(lambda n: jax.random.uniform(jax.random.fold_in(key, n)))(
        (9 * a).astype(jnp.uint32)
    ),
    "keys": lambda key, a: jax.vmap(lambda key, a: jax.random.gamma(key, a))(jax.random.split(key, 6), a),
    "legacy key": lambda key, a: jax.random.gamma(jax.random.PRNGKey(3), a),
    "bits": lambda key, a: a * lax.rng_bit_generator(jnp.arange(4, dtype=jnp.uint32), (6,))[1].astype(float),
}


@pytest.mark.filterwarnings("ignore:infer_spec has no rule")
@pytest.mark.parametrize("draw", DRAWS)
def test_draws_of_one_key_are_in_order(draw):
    def fn(p, key):
        return jnp.sum(DRAWS[draw](key, jnp.exp(p["a"])) * p["v"])

    params = {"a": jnp.arange(6.0) / 4, "v": jnp.arange(6.0) + 1}
    check_spec(fn, infer_spec(fn, params, KEY), params, KEY, key=jax.random.key(1), trials=1)


def test_draws_are_exchangeable_in_distribution():
    def fn(p, key):
        return jnp.sum(jax.random.gamma(key, jnp.exp(p["a"])) * p["v"])

    params = {"a": jnp.arange(6.0), "v": jnp.arange(6.0)}
    assert infer_spec(fn, params, KEY).sizes == {}
    assert axes_of(infer_spec(fn, params, KEY, noise="permute")) == {"a": ("a:0",), "v": ("a:0",)}
