"""The time to infer the spec of a Transformer's training loss with its gradient, by the number of blocks.

    python benchmarks/infer.py

The blocks have the width of GPT-2 (768, 12 heads, 50,257 tokens, 1,024 positions). Nothing is executed, so neither
weights nor data are needed. Each measurement has a process of its own with empty caches of jax: `trace` is the time
that jax takes to make the jaxpr, `infer` is all the rest of `infer_spec`. Both are CPU time, which other work on the
machine does not enter. On Linux all is measured once more on one CPU core. Prints `name value unit` per line.
"""

import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.extend import core

from optax_unf import infer_spec


class Part(nn.Module):
    @nn.compact
    def __call__(self, x, mask):
        x = x + nn.MultiHeadDotProductAttention(num_heads=12)(nn.LayerNorm()(x), mask=mask)
        return x + nn.Dense(768)(nn.gelu(nn.Dense(3072)(nn.LayerNorm()(x))))


class GPT2(nn.Module):
    blocks: int

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(50257, 768)
        x = embed(tokens) + self.param("positions", nn.initializers.normal(), (1024, 768))
        for _ in range(self.blocks):
            x = Part()(x, nn.make_causal_mask(tokens))
        return embed.attend(nn.LayerNorm()(x))


def count(jaxpr):
    """Equations, with those of all functions that are called."""
    return sum(1 + sum(map(count, core.jaxprs_in_params(eqn.params))) for eqn in jaxpr.eqns)


def measure(blocks, cores):
    """Seconds of tracing, seconds of all else in `infer_spec`, equations, names."""
    if cores:
        os.sched_setaffinity(0, cores)
    model = GPT2(blocks)
    tokens = jax.ShapeDtypeStruct((4, 1024), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
    jax.clear_caches()

    def step(params, tokens):
        def loss(params):
            logits = jnp.asarray(model.apply({"params": params}, tokens))
            return optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:]).mean()

        value, grads = jax.value_and_grad(loss)(params)
        return value, optax.tree.norm(grads)

    make_jaxpr, traced = jax.make_jaxpr, []

    def timed(fn):
        def trace(*args):
            start = time.process_time()
            closed = make_jaxpr(fn)(*args)
            traced.append((time.process_time() - start, count(closed.jaxpr)))
            return closed

        return trace

    with mock.patch.object(jax, "make_jaxpr", timed):
        start = time.process_time()
        spec = infer_spec(step, params, tokens)
        whole = time.process_time() - start
    ((trace, equations),) = traced
    return trace, whole - trace, equations, len(spec.sizes)


def main() -> None:
    settings: dict[str, set[int] | None] = {"": None}
    if hasattr(os, "sched_setaffinity"):
        settings["_one_core"] = {min(os.sched_getaffinity(0))}
    fresh = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1)
    for suffix, cores in settings.items():
        for blocks in (3, 6, 12, 24):
            trace, infer, equations, names = fresh.submit(measure, blocks, cores).result()
            name = f"gpt2_{blocks}_blocks"
            if not suffix:
                print(f"{name}_names {names} names")
                print(f"{name}_equations {equations} equations")
            print(f"{name}_trace{suffix} {trace:.2f} s")
            print(f"{name}_infer{suffix} {infer:.3f} s")
            print(f"{name}_infer_per_equation{suffix} {infer / equations * 1e6:.0f} us", flush=True)


if __name__ == "__main__":
    main()
