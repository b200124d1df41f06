"""Memory, time and compilation of one update of a GPT-2-small-sized tree.

    python benchmarks/scale.py [--coefficients tied] [--preconditioner rms] [--blocks 12]
        [--tile-entries 65536] [--compile-only]

Prints `name value unit` per line. The step takes parameters, state and gradients and replaces the first two.
"""

import argparse
import resource
import time

import jax
import numpy as np
import spaces
import timing

from optax_unf import Architecture, init_weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--coefficients", choices=["full", "tied"], default="full")
    parser.add_argument("--preconditioner", choices=["rms"])
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--tile-entries", type=int, help="of large leaves; by default as the device wants it")
    parser.add_argument("--compile-only", action="store_true")
    parser.add_argument("--steps", type=int, default=7)
    args = parser.parse_args()
    spec, shapes = spaces.gpt2(args.blocks)
    name = f"gpt2_{args.blocks}_blocks_{args.coefficients}" + ("_preconditioned" if args.preconditioner else "")
    optimizer = timing.learned(spec, args.coefficients, args.preconditioner, args.tile_entries)
    print(f"{name}_leaves {len(spec.leaves)} leaves")
    print(f"{name}_parameters {timing.entries(spec) / 1e6:.1f} M")
    start = time.perf_counter()
    config = Architecture(coefficients=args.coefficients, preconditioner=args.preconditioner)
    jax.block_until_ready(init_weights(config, spec, jax.random.key(0)).theta)
    print(f"{name}_weights {time.perf_counter() - start:.1f} s")
    if args.compile_only:
        _, trace, compile_ = timing.compiled_step(optimizer, shapes)
        print(f"{name}_trace {trace:.1f} s\n{name}_compile {compile_:.1f} s")
        return
    run = timing.Runner(optimizer, shapes)
    print(f"{name}_trace {run.trace_seconds:.1f} s\n{name}_compile {run.compile_seconds:.1f} s")
    held = sum(x.nbytes for x in jax.tree.leaves((run.params, run.grads, run.state)))
    memory = run.step.memory_analysis()
    assert memory is not None
    peak = memory.argument_size_in_bytes + memory.output_size_in_bytes
    peak += memory.temp_size_in_bytes - memory.alias_size_in_bytes
    print(
        f"{name}_held {held / 1e9:.2f} GB\n{name}_peak {peak / 1e9:.2f} GB\n{name}_peak_over_held {peak / held:.2f} x"
    )
    run()
    # The machine's rate changes from minute to minute: it is measured before and after every step.
    seconds, floors = [], []
    for _ in range(args.steps):
        before = timing.matmul_rate()
        seconds.append(run())
        rate = (before + timing.matmul_rate()) / 2
        floors.append(timing.floating_point_work(spec) / rate)
    print(f"{name}_step {np.median(seconds):.2f} s")
    print(f"{name}_floor {np.median(floors):.2f} s")
    print(f"{name}_step_over_floor {np.median(np.array(seconds) / np.array(floors)):.2f} x")
    print(f"{name}_resident {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


if __name__ == "__main__":
    main()
