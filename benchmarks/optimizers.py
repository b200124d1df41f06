"""One update of the learned optimizer against optax.adam, on the paper's spaces and on trees of 1e3 to 1e8 parameters.

    python benchmarks/optimizers.py --out docs/results

Prints `name value unit` per line, and writes a table and a plot. Steps alternate in one process, warm; medians.
"""

import argparse
from pathlib import Path

import matplotlib as mpl
import numpy as np
import optax

mpl.use("agg")
import matplotlib.pyplot as plt
import spaces
import timing

MLPS = {
    "mlp 64-32-32-10": (64, 32, 32, 10),
    "mlp 1e3": (16, 24, 24),
    "mlp 1e4": (64, 70, 74),
    "mlp 1e5": (128, 256, 256, 10),
    "mlp 1e6": (784, 640, 640, 128, 10),
    "mlp 1e7": (2048, 2048, 2048, 768, 10),
    "mlp 1e8": (4096, 6144, 6144, 6144, 10),
}
PAPER = {"cnn": spaces.cnn, "rnn": spaces.rnn, "transformer": spaces.small_transformer}


def measure(name, spec, shapes, rounds):
    ours = timing.Runner(timing.learned(spec), shapes)
    preconditioned = timing.Runner(timing.learned(spec, preconditioner="rms"), shapes)
    adam = timing.Runner(optax.adam(1e-3), shapes)
    repeat = max(1, int(0.02 / max(ours(3), 1e-6)))
    preconditioned(3)
    times, entry_times, adam_times, floors = [], [], [], []
    for _ in range(rounds):
        rate = timing.matmul_rate(0.05)
        times.append(ours(repeat))
        entry_times.append(preconditioned(repeat))
        adam_times.append(adam(repeat))
        floors.append(timing.floating_point_work(spec) / rate)
    row = {
        "parameters": timing.entries(spec),
        "step": float(np.median(times)),
        "preconditioned": float(np.median(entry_times)),
        "adam": float(np.median(adam_times)),
        "floor": float(np.median(floors)),
        "compile": ours.trace_seconds + ours.compile_seconds,
    }
    label = name.replace(" ", "_")
    print(f"{label}_step {row['step'] * 1e3:.3f} ms")
    print(f"{label}_preconditioned {row['preconditioned'] * 1e3:.3f} ms")
    print(f"{label}_adam {row['adam'] * 1e3:.3f} ms")
    print(f"{label}_floor {row['floor'] * 1e3:.3f} ms")
    print(f"{label}_compile {row['compile']:.1f} s")
    print(f"{label}_over_adam {row['step'] / row['adam']:.1f} x")
    print(f"{label}_preconditioned_over_step {row['preconditioned'] / row['step']:.2f} x")
    print(f"{label}_over_3_adam_and_floor {row['step'] / (3 * row['adam'] + row['floor']):.2f} x", flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    made = {**{name: make() for name, make in PAPER.items()}, **{k: spaces.mlp(*w) for k, w in MLPS.items()}}
    rows = {name: measure(name, spec, shapes, args.rounds) for name, (spec, shapes) in made.items()}
    if not args.out:
        return
    lines = [
        "| space | parameters | update | preconditioned | optax.adam | ratio | floor | compile |",
        "|" + "---|" * 8,
    ]
    for name, row in rows.items():
        step, preconditioned, adam, floor = (1e3 * row[part] for part in ("step", "preconditioned", "adam", "floor"))
        lines.append(
            f"| {name} | {row['parameters']:,} | {step:.2f} ms | {preconditioned:.2f} ms | {adam:.3f} ms | "
            f"{step / adam:.0f} | {floor:.2f} ms | {row['compile']:.1f} s |"
        )
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "optimizers.md").write_text(
        "# One update against optax.adam\n\n"
        "UNF head, full coefficients, two CPU cores; without a preconditioner but for the column of that name. The "
        "floor is the work in floating-point operations at the rate of a 1024 x 1024 matrix product in the same "
        "process.\n\n"
        + "\n".join(lines)
        + "\n\n![times](optimizers.png)\n\nMade by `python benchmarks/optimizers.py --out docs/results`.\n"
    )
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    sized = sorted((row for name, row in rows.items() if name.startswith("mlp")), key=lambda row: row["parameters"])
    for key, label in {"step": "UNF", "floor": "floor of its arithmetic", "adam": "optax.adam"}.items():
        axes.plot([r["parameters"] for r in sized], [r[key] * 1e3 for r in sized], "o-", label=label)
    axes.set(xscale="log", yscale="log", xlabel="parameters", ylabel="one update (ms)")
    axes.legend()
    figure.savefig(args.out / "optimizers.png", dpi=150)


if __name__ == "__main__":
    main()
