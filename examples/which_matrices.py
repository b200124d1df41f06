"""Which arrays are matrices? A Transformer in plain JAX, whose query, key and value are one fused array.

    python examples/which_matrices.py

Nothing marks the fused array, the heads or the embedding: they follow from the loss. Prints what is a matrix
without a spec and with one that is inferred, trains with both, and hands the finding to optax's own Muon. The text is
Python's own documentation. Takes about a minute on two CPU cores.
"""

import argparse
from pydoc_data.topics import topics

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_unf

WIDTH, HEADS, LENGTH, BATCH = 32, 4, 32, 16


def init(key, vocabulary):
    shapes = {
        "embed": (vocabulary, WIDTH),
        "positions": (LENGTH, WIDTH),
        "qkv": (WIDTH, 3 * WIDTH),
        "attend": (WIDTH, WIDTH),
        "up": (WIDTH, 4 * WIDTH),
        "up_bias": (4 * WIDTH,),
        "down": (4 * WIDTH, WIDTH),
        "out": (WIDTH, vocabulary),
    }
    keys = jax.random.split(key, len(shapes))
    return {
        name: jax.random.normal(key, shape) / np.sqrt(shape[0])
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def apply(params, tokens):
    x = params["embed"][tokens] + params["positions"]
    q, k, v = (
        part.reshape(*part.shape[:-1], HEADS, WIDTH // HEADS)
        for part in jnp.split(jax.nn.standardize(x) @ params["qkv"], 3, axis=-1)
    )
    x += jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(x.shape) @ params["attend"]
    x += jax.nn.gelu(jax.nn.standardize(x) @ params["up"] + params["up_bias"]) @ params["down"]
    return jax.nn.standardize(x) @ params["out"]


def loss(params, tokens):
    logits = apply(params, tokens[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()


def train(optimizer, params, batches):
    def step(carry, tokens):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params, tokens)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), value

    return jax.jit(lambda params: jax.lax.scan(step, (params, optimizer.init(params)), batches)[1])(params)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    args = parser.parse_args()

    characters, text = np.unique(list("\n".join(topics[name] for name in sorted(topics))), return_inverse=True)
    starts = np.random.default_rng(0).integers(0, len(text) - LENGTH, (args.steps, BATCH, 1))
    batches = jnp.asarray(text[starts + np.arange(LENGTH + 1)])
    params = init(jax.random.key(0), len(characters))

    spec = optax_unf.infer_spec(loss, params, batches[0], io="permute")
    for what, given in {"without a spec": None, "with the inferred spec": spec}.items():
        print(f"\nTaken for matrices {what}:\n{optax_unf.describe_matrices(params, given)}")

    steps = args.steps
    numbers = optax_unf.muon_dimension_numbers(spec, params)
    rate = optax.cosine_decay_schedule(0.02, steps)
    optimizers = {
        "unf, no spec": optax_unf.unf(total_steps=steps),
        "unf, inferred spec": optax_unf.unf(total_steps=steps, spec=spec),
        "optax's Muon, rate 0.02, inferred matrices": optax.contrib.muon(rate, muon_weight_dimension_numbers=numbers),
    }
    print(f"\nLoss over the last 20 of {steps} steps")
    for name, optimizer in optimizers.items():
        print(f"{name:45}{train(optimizer, params, batches)[-20:].mean():.4f}")


if __name__ == "__main__":
    main()
