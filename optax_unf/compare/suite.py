"""The tasks of the suites.

*Unseen* tasks give the results: nothing is ever trained on their data, chosen by them, or tuned on them but the rates
of baselines. *Probe* tasks, on data that meta-training may use, decide between candidates; each has a short and a long
horizon. Mixers and diffusion are classes of architecture that meta-training leaves out, too. *Stress* tasks, on the
data of unseen ones, each stand far from the usual in one respect.

To add a task, add an entry: a network, data, batch size and horizon.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping

import jax.numpy as jnp

from optax_unf.compare.data import (
    cifar,
    fashion,
    handwriting,
    news,
    noisy_points,
    picture,
    reconstruction,
    shakespeare,
    table,
    teacher,
)
from optax_unf.compare.networks import CNN, MLP, FourierMLP, Mixer, RecurrentLM, ResNet, TransformerLM, ViT
from optax_unf.compare.problems import (
    PhysicsInformed,
    Problem,
    Supervised,
    helmholtz,
    poisson,
    smoothed_cross_entropy,
    squared_error,
)

UNSEEN: Mapping[str, Callable[[], Problem]] = {
    # Perceptrons.
    "linear": lambda: Supervised(MLP((10,)), cifar(8), batch_size=128, horizon=500),
    "mlp-narrow": lambda: Supervised(MLP((32, 32, 10)), cifar(8), batch_size=128, horizon=2000),
    "mlp-wide": lambda: Supervised(MLP((128, 128, 10), "gelu"), cifar(8), batch_size=64, horizon=1000),
    "mlp-deep": lambda: Supervised(MLP((32,) * 8 + (10,), "tanh"), cifar(8), batch_size=64, horizon=2000),
    "mlp-norm": lambda: Supervised(MLP((64,) * 3 + (10,), "silu", norm=True), cifar(8), batch_size=64, horizon=1000),
    "autoencoder": lambda: Supervised(
        MLP((64, 16, 64, 192)), reconstruction(cifar(8)), squared_error, batch_size=64, horizon=2000
    ),
    # Convolutions.
    "cnn": lambda: Supervised(CNN((16, 32, 32), (2, 2, 1), 10), cifar(16), batch_size=32, horizon=1000),
    "resnet-batch-norm": lambda: Supervised(ResNet((8, 16), 10), cifar(16), batch_size=32, horizon=800),
    "resnet-group-norm": lambda: Supervised(ResNet((8, 16), 10, "group"), cifar(16), batch_size=32, horizon=800),
    # Sequences and patches.
    "gru": lambda: Supervised(_recurrent("gru", 32), shakespeare(), batch_size=16, horizon=1000),
    "lstm-fused": lambda: Supervised(_recurrent("lstm", 32), shakespeare(), batch_size=16, horizon=1000),
    "transformer": lambda: Supervised(_transformer(fused=False), shakespeare(), batch_size=8, horizon=1000),
    "transformer-fused": lambda: Supervised(_transformer(fused=True), shakespeare(), batch_size=8, horizon=1000),
    "vit": lambda: Supervised(ViT(10), cifar(16), batch_size=16, horizon=1000),
    "mixer": lambda: Supervised(Mixer(10), cifar(16), batch_size=16, horizon=1000),
    # Functions, equations, densities.
    "implicit-image": lambda: Supervised(
        FourierMLP((64, 64, 3)), picture("flower"), squared_error, batch_size=128, horizon=3000
    ),
    "physics-informed": lambda: PhysicsInformed(
        MLP((32, 32, 1), "tanh"),
        helmholtz,
        lambda x: jnp.cos(math.pi * x[0]) * jnp.sin(2 * math.pi * x[1]),
        batch_size=64,
        horizon=10_000,
    ),
    "diffusion": lambda: Supervised(
        MLP((64, 64, 2), "silu"), noisy_points("roll"), squared_error, batch_size=128, horizon=3000
    ),
    # Tables.
    "regression": lambda: Supervised(MLP((32, 32, 1)), table("diabetes"), squared_error, batch_size=32, horizon=1000),
    "classification": lambda: Supervised(
        MLP((32, 2)), table("breast_cancer"), smoothed_cross_entropy, batch_size=32, horizon=300
    ),
}
"""The 20 tasks that give results, by name: functions that load their data and make them."""

_PROBE: Mapping[str, tuple[tuple[int, int], Callable[[], Problem]]] = {
    "mlp": ((500, 2000), lambda: Supervised(MLP((32, 32, 10)), fashion(8), batch_size=128, horizon=0)),
    "mlp-norm": (
        (300, 1200),
        lambda: Supervised(MLP((96, 96, 10), "gelu", norm=True), fashion(8), batch_size=32, horizon=0),
    ),
    "mlp-deep": ((500, 2000), lambda: Supervised(MLP((32,) * 6 + (10,)), handwriting(), batch_size=64, horizon=0)),
    "autoencoder": (
        (500, 2000),
        lambda: Supervised(
            MLP((32, 8, 32, 64), "tanh"), reconstruction(fashion(8)), squared_error, batch_size=64, horizon=0
        ),
    ),
    "cnn": ((200, 800), lambda: Supervised(CNN((8, 16), (2, 1), 10), fashion(16), batch_size=32, horizon=0)),
    "resnet": ((200, 800), lambda: Supervised(ResNet((8, 8), 10), fashion(16), batch_size=16, horizon=0)),
    "elman": (
        (300, 1200),
        lambda: Supervised(RecurrentLM(news().vocabulary, 32, "elman"), news(), batch_size=16, horizon=0),
    ),
    "gru": (
        (300, 1000),
        lambda: Supervised(RecurrentLM(news().vocabulary, 24, "gru"), news(), batch_size=16, horizon=0),
    ),
    "transformer": (
        (300, 1000),
        lambda: Supervised(TransformerLM(news().vocabulary, blocks=1, fused=True), news(), batch_size=8, horizon=0),
    ),
    "vit": ((300, 1000), lambda: Supervised(ViT(10, blocks=1), fashion(16), batch_size=16, horizon=0)),
    "teacher": (
        (500, 3000),
        lambda: Supervised(MLP((32, 32, 1)), teacher(16, 8), squared_error, batch_size=64, horizon=0),
    ),
    "physics-informed": (
        (1000, 5000),
        lambda: PhysicsInformed(MLP((32, 32, 1), "tanh"), poisson, lambda x: jnp.zeros(()), batch_size=64, horizon=0),
    ),
}

PROBE: Mapping[str, Callable[[], Problem]] = {
    f"{name}-{horizon}": lambda make=make, horizon=horizon: dataclasses.replace(make(), horizon=horizon)
    for name, (horizons, make) in _PROBE.items()
    for horizon in horizons
}
"""The tasks to choose by, in the same way: each of 12 networks with a short and a long horizon."""

_narrow = functools.partial(Supervised, MLP((32, 32, 10)), batch_size=128, horizon=1000)

STRESS: Mapping[str, Callable[[], Problem]] = {
    "wide": lambda: Supervised(MLP((512, 512, 10)), cifar(8), batch_size=64, horizon=500),
    "deep": lambda: Supervised(
        MLP((32,) * 24 + (10,), "silu", norm=True, residual=True), cifar(8), batch_size=64, horizon=500
    ),
    "short": lambda: _narrow(cifar(8), horizon=50),
    "long": lambda: Supervised(MLP((32, 32, 1)), table("diabetes"), squared_error, batch_size=32, horizon=50_000),
    "batch-of-8": lambda: _narrow(cifar(8), batch_size=8),
    "bfloat16": lambda: _narrow(cifar(8), dtype=jnp.bfloat16),
    "small-weights": lambda: _narrow(cifar(8), initial_scale=0.1),
    "large-weights": lambda: _narrow(cifar(8), initial_scale=10.0),
}
"""Tasks far from the usual, in one respect each: wider, deeper, shorter, longer, noisier, in other units."""

SUITES: Mapping[str, Mapping[str, Callable[[], Problem]]] = {"unseen": UNSEEN, "probe": PROBE, "stress": STRESS}

# Cheap tasks of many kinds, for a first look.
QUICK: Mapping[str, tuple[str, ...]] = {
    "unseen": (
        "linear",
        "mlp-narrow",
        "mlp-norm",
        "resnet-group-norm",
        "lstm-fused",
        "transformer",
        "regression",
        "classification",
    ),
    "probe": tuple(f"{name}-{_PROBE[name][0][0]}" for name in list(_PROBE)[:8]),
    "stress": tuple(name for name in STRESS if name not in ("wide", "long")),
}
"""Names of the cheap tasks of each suite."""


def get(suite: str, name: str) -> Problem:
    """A task of a suite, with its data loaded.

    Raises:
      ValueError: there is no such task.
    """
    tasks = SUITES[suite]
    if name not in tasks:
        raise ValueError(f"The task of the suite {suite} must be one of {', '.join(tasks)}, but is {name!r}.")
    return dataclasses.replace(tasks[name](), name=name)


def _recurrent(cell: str, hidden: int) -> RecurrentLM:
    return RecurrentLM(shakespeare().vocabulary, hidden, cell)


def _transformer(*, fused: bool) -> TransformerLM:
    return TransformerLM(shakespeare().vocabulary, fused=fused)
