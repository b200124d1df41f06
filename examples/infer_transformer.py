"""Infers the permutation spec of a flax.nnx Transformer and trains it with a pretrained learned optimizer.

    python examples/infer_transformer.py --compare

A language model of characters: of Tiny Shakespeare where the folder that OPTAX_UNF_DATA names has it, otherwise of this
package's own source. Prints the spec, then the training loss. Takes about half a minute on two CPU cores.
"""

import argparse
import os
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import optax_unf

WIDTH, BLOCKS, HEADS, LENGTH, BATCH = 32, 2, 4, 32, 16
WEIGHTS = ("universal", "mlp-fashion-mnist-tied", "mlp-fashion-mnist-deepsets")


class Part(nnx.Module):
    def __init__(self, rngs):
        self.norm_1, self.norm_2 = nnx.LayerNorm(WIDTH, rngs=rngs), nnx.LayerNorm(WIDTH, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs)
        self.up, self.down = nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs), nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x, mask):
        x = x + self.attention(self.norm_1(x), mask=mask)
        return x + self.down(nnx.gelu(self.up(self.norm_2(x))))


class LanguageModel(nnx.Module):
    def __init__(self, vocabulary, rngs):
        self.embed = nnx.Embed(vocabulary, WIDTH, rngs=rngs)
        self.positions = nnx.Param(0.02 * jax.random.normal(rngs.params(), (LENGTH, WIDTH)))
        self.blocks = nnx.List([Part(rngs) for _ in range(BLOCKS)])
        self.out = nnx.Linear(WIDTH, vocabulary, rngs=rngs)

    def __call__(self, tokens):
        x = self.embed(tokens) + self.positions[...]
        for block in self.blocks:
            x = block(x, nnx.make_causal_mask(tokens))
        return self.out(x)


def read_text():
    shakespeare = Path(os.environ.get("OPTAX_UNF_DATA", "")) / "tinyshakespeare" / "input.txt"
    own = sorted(Path(optax_unf.__file__).parent.rglob("*.py"))
    return "".join(path.read_text(encoding="utf-8") for path in ([shakespeare] if shakespeare.is_file() else own))


def train(loss, params, sample, optimizer, steps):
    @jax.jit
    def step(params, state, key):
        value, grads = jax.value_and_grad(loss)(params, sample(key))
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    state, losses = optimizer.init(params), []
    for key in jax.random.split(jax.random.key(1), steps):
        params, state, value = step(params, state, key)
        losses.append(value)
    return np.array(losses)


def main() -> None:
    available = [name for name in WEIGHTS if name in optax_unf.list_pretrained().names]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default=available[0], help="a pretrained name or a path")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--compare", action="store_true", help="also train with optax.adam(3e-3)")
    args = parser.parse_args()

    characters, text = np.unique(list(read_text()), return_inverse=True)
    text = jnp.asarray(text)
    graph, params = nnx.split(LanguageModel(len(characters), nnx.Rngs(0)), nnx.Param)

    def sample(key):
        starts = jax.random.randint(key, (BATCH, 1), 0, len(text) - LENGTH)
        return text[starts + jnp.arange(LENGTH + 1)]

    def loss(params, tokens):
        logits = nnx.merge(graph, params)(tokens[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    # From any loss to a learned optimizer for it: with `train` above, the whole use of this package.
    spec = optax_unf.infer_spec(loss, params, sample(jax.random.key(0)), io="permute")
    print(spec)
    optimizers = {args.weights: optax_unf.unf(args.weights, total_steps=args.steps, spec=spec)}
    if args.compare:
        optimizers["adam"] = optax.adam(3e-3)

    for name, optimizer in optimizers.items():
        start = time.perf_counter()
        losses = train(loss, params, sample, optimizer, args.steps)
        print(f"\n{name}, {time.perf_counter() - start:.0f} s with compilation")
        for before in range(0, args.steps, 100):
            part = losses[before : before + 100]
            print(f"step {before + len(part):5}   loss {part.mean():.3f}")


if __name__ == "__main__":
    main()
