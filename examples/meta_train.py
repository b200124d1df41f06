"""Meta-trains a learned optimizer on handwritten digits, from Python, and trains a network with it. Takes a minute.

    python examples/meta_train.py

The program `optax-unf meta-train` does the same for the paper's tasks, with checkpoints and pictures.
"""

import jax

from optax_unf import Architecture, tasks
from optax_unf.meta import (
    Backprop,
    MetaTrainConfig,
    Stage,
    fresh_keys,
    fresh_runs,
    learned_training,
    meta_train,
)

OUTER_STEPS = 50
HORIZON = 200
TRUNCATION = 20


def main() -> None:
    task = tasks.get("mlp-digits")
    stage = Stage(Backprop(runs=4, truncation=TRUNCATION), OUTER_STEPS, learning_rate=1e-2, schedule="cosine", warmup=1)
    config = MetaTrainConfig((stage,), horizon=HORIZON, evaluate_every=10, evaluate_runs=4)
    result = meta_train(Architecture(head="deepsets"), task, config, jax.random.key(0))
    for record in result.curve:
        print(f"final loss {record['final_loss']:.4f} after {record['step']} outer steps")
    training = learned_training(result.weights.architecture, task)
    runs = fresh_runs(training, result.weights.theta, fresh_keys(4), HORIZON)
    print(f"held-out loss of networks trained by the best weights: {runs.validation.mean():.4f}")


if __name__ == "__main__":
    main()
