"""Numbers for the models of the zoo."""

import jax
import jax.numpy as jnp
import numpy as np


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def tokens(*shape, vocabulary):
    return np.random.default_rng(0).integers(0, vocabulary, size=shape).astype(np.int32)


def cross_entropy(logits, labels):
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], axis=-1))


def filled(shapes):
    """Numbers in the shapes that a framework's initialization has: normal ones, positive variances, one seed."""
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.key(0)
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return jnp.zeros(leaf.shape, leaf.dtype)
        value = rng.normal(size=leaf.shape)
        return jnp.asarray(np.abs(value) + 0.5 if "var" in jax.tree_util.keystr(path) else value, leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, shapes)
