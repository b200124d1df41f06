"""The UNF layer against the direct evaluation of all basis terms, and its growth with the number of leaves.

    python benchmarks/layer.py

Prints `name value unit` per line. Both sides run in this process, warm, and medians are compared.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np

from optax_unf import make_spec
from optax_unf.equivariant.basis import apply_basis, basis
from optax_unf.nn import UNF

CHANNELS = 32
WIDTH = 32


def mlp(depth):
    axes = {f"layer_{i}": {"weight": (i, i + 1), "bias": (i + 1,)} for i in range(depth)}
    params = {f"layer_{i}": {"weight": jnp.zeros((WIDTH, WIDTH)), "bias": jnp.zeros(WIDTH)} for i in range(depth)}
    spec = make_spec(axes, params)
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    features = [jax.random.normal(k, (*x.shape, CHANNELS)) for k, x in zip(keys, leaves, strict=True)]
    return spec, treedef.unflatten(features)


def compile_seconds(function, *args):
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*args).compile()
    return time.perf_counter() - start, compiled


def run_seconds(functions, *, rounds=15):
    """Medians of interleaved runs, so that both see the same machine."""
    times = [[] for _ in functions]
    for _ in range(rounds):
        for function, seconds in zip(functions, times, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(function())
            seconds.append(time.perf_counter() - start)
    return [float(np.median(seconds[2:])) for seconds in times]


def main() -> None:
    for depth in (2, 4, 8, 16, 32):
        spec, x = mlp(depth)
        layer = UNF(spec, CHANNELS)
        variables = jax.jit(layer.init)(jax.random.key(0), x)
        equations = len(jax.make_jaxpr(layer.apply)(variables, x).jaxpr.eqns)
        seconds, compiled = compile_seconds(layer.apply, variables, x)
        (run,) = run_seconds([lambda c=compiled, v=variables, x=x: c(v, x)])
        print(f"layer_{2 * depth}_leaves_equations {equations} equations")
        print(f"layer_{2 * depth}_leaves_compile {seconds:.2f} s")
        print(f"layer_{2 * depth}_leaves_run {run * 1e3:.2f} ms")

    spec, x = mlp(16)
    layer = UNF(spec, CHANNELS)
    variables = jax.jit(layer.init)(jax.random.key(0), x)
    terms = len(basis(spec))
    coefficients = list(0.1 * jax.random.normal(jax.random.key(1), (terms, CHANNELS, CHANNELS)))
    seconds, compiled = compile_seconds(layer.apply, variables, x)
    direct_seconds, direct = compile_seconds(lambda c, x: apply_basis(spec, c, x), coefficients, x)
    run, direct_run = run_seconds([lambda: compiled(variables, x), lambda: direct(coefficients, x)])
    print(f"basis_32_leaves_terms {terms} terms")
    print(f"basis_32_leaves_compile {direct_seconds:.1f} s")
    print(f"basis_32_leaves_run {direct_run * 1e3:.2f} ms")
    print(f"compile_ratio {direct_seconds / seconds:.1f} x")
    print(f"run_ratio {direct_run / run:.1f} x")


if __name__ == "__main__":
    main()
