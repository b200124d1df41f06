"""Stages that go far on a small budget: two CPU cores. Most of the weights in `pretrained/` were made by them."""

from optax_unf.meta.config import Stage
from optax_unf.meta.estimators.backprop import Backprop
from optax_unf.meta.estimators.evolution import PES, FullES

# Short truncations first, which cost least and say most; longer ones take away their bias.
_STAGES = {
    "mlp-fashion-mnist": (
        Stage(Backprop(runs=16, truncation=50), steps=500, learning_rate=1e-2, schedule="cosine", warmup=20),
        Stage(Backprop(runs=8, truncation=200), steps=150, learning_rate=3e-3, schedule="cosine", warmup=5),
        Stage(Backprop(runs=8, truncation=500), steps=80, learning_rate=3e-3, schedule="cosine", warmup=5),
        Stage(PES(pairs=16, truncation=50), steps=400, learning_rate=3e-4, schedule="cosine", warmup=20),
    ),
    # These begin with weights meta-trained on mlp-fashion-mnist.
    "cnn-cifar10": (
        Stage(Backprop(runs=8, truncation=50), steps=150, learning_rate=5e-3, schedule="cosine", warmup=10),
        Stage(Backprop(runs=4, truncation=500), steps=60, learning_rate=3e-3, schedule="cosine", warmup=5),
    ),
    # Rates of 5e-3 spoil what weights know already, here and on the Transformer.
    "rnn-lm1b-small": (
        Stage(Backprop(runs=4, truncation=500), steps=40, learning_rate=1e-3, schedule="cosine", warmup=2),
    ),
    # With `alpha=0.5, learned=0.2` of `transfer_weights`: SGD alone wants a longer step here than the MLP's 0.07.
    "transformer-lm1b-small": (
        Stage(
            Backprop(runs=2, truncation=500),
            steps=45,
            learning_rate=1.5e-3,
            schedule="cosine",
            warmup=3,
            scalar_rate=5e-2,
        ),
    ),
}


def small_budget(task: str, head: str) -> tuple[Stage, ...]:
    """Stages for a task on a few CPU cores.

    The two scalars of SGD with momentum (`head="none"`) have whole inner runs with wide noise: two numbers need no
    gradient through the inner steps, and short truncations prefer small steps (Wu et al. 2018, arXiv:1803.02021).

    Args:
      task: the task's name; the stages of `mlp-fashion-mnist` for those without stages of their own.
      head: of the learned optimizer.
    """
    if head == "none":
        return (Stage(FullES(pairs=4, sigma=0.2), steps=40, learning_rate=0.1, schedule="cosine", warmup=2),)
    return _STAGES.get(task, _STAGES["mlp-fashion-mnist"])
