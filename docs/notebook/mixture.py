"""How the numbers of a mixture were found: evolution strategies over whole inner runs, on many small tasks.

    OPTAX_UNF_DATA=... python docs/notebook/mixture.py --out runs/mixture

Goes on from OUT when it is called again. Each outer step takes five tasks in turn. For each it draws a length of run,
six antithetic pairs of perturbations, and a fresh network and scale of its weights for each pair, and trains all
twelve whole runs side by side.

A task's losses are told in the steps that the nominal term, which is the mixture with f = 0, needs for them: the
difference of log loss, over what log loss falls while the logarithm of the run's length grows by one. So a per cent
counts for much where losses hardly fall and for little where they fall by orders of magnitude.
"""

import argparse
import functools
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from optax_unf import Architecture, InitialScalars, MetaWeights, init_weights, make_spec, save_weights, unf
from optax_unf._files import replaced
from optax_unf.compare.data import fashion, handwriting, news, picture, reconstruction, table, teacher
from optax_unf.compare.networks import CNN, MLP, FourierMLP, RecurrentLM, ResNet, TransformerLM, ViT
from optax_unf.compare.problems import (
    PhysicsInformed,
    Problem,
    Supervised,
    poisson,
    smoothed_cross_entropy,
    squared_error,
)

MIXTURE = Architecture("mixture", hidden_channels=8, hidden_layers=1, nominal="orthogonalized", step="distance")

# The longest run of each, and the task, whose own horizon nobody asks for.
TASKS: dict[str, tuple[int, Callable[[], Problem]]] = {
    "mlp": (800, lambda: Supervised(MLP((32, 32, 10)), fashion(8), batch_size=128, horizon=0)),
    "mlp-tanh": (800, lambda: Supervised(MLP((24,) * 4 + (10,), "tanh"), fashion(8), batch_size=64, horizon=0)),
    "mlp-norm": (
        800,
        lambda: Supervised(MLP((48, 48, 10), "silu", norm=True), fashion(8), batch_size=16, horizon=0),
    ),
    "mlp-residual": (
        800,
        lambda: Supervised(MLP((32,) * 5 + (10,), "relu", residual=True), handwriting(), batch_size=64, horizon=0),
    ),
    "mlp-deep": (800, lambda: Supervised(MLP((24,) * 6 + (10,), "relu"), handwriting(), batch_size=32, horizon=0)),
    "mlp-gelu": (800, lambda: Supervised(MLP((40, 40, 40, 10), "gelu"), fashion(8), batch_size=32, horizon=0)),
    "autoencoder": (
        800,
        lambda: Supervised(MLP((48, 12, 48, 64)), reconstruction(fashion(8)), squared_error, batch_size=64, horizon=0),
    ),
    "teacher": (
        800,
        lambda: Supervised(MLP((32, 1), "tanh"), teacher(8, 16), squared_error, batch_size=64, horizon=0),
    ),
    "teacher-deep": (
        800,
        lambda: Supervised(MLP((48, 48, 1), "relu"), teacher(8, 16), squared_error, batch_size=128, horizon=0),
    ),
    "physics-informed": (
        800,
        lambda: PhysicsInformed(MLP((24, 24, 1), "tanh"), poisson, lambda x: jnp.zeros(()), batch_size=32, horizon=0),
    ),
    "image": (800, lambda: Supervised(FourierMLP((48, 3)), picture("china"), squared_error, batch_size=64, horizon=0)),
    "wine": (
        400,
        lambda: Supervised(MLP((24, 3)), table("wine"), smoothed_cross_entropy, batch_size=16, horizon=0),
    ),
    "cnn": (300, lambda: Supervised(CNN((8, 16), (2, 1), 10), fashion(8), batch_size=32, horizon=0)),
    "resnet": (200, lambda: Supervised(ResNet((8, 8), 10, "group"), fashion(8), batch_size=16, horizon=0)),
    "elman": (300, lambda: Supervised(RecurrentLM(news().vocabulary, 24, "elman"), news(), batch_size=8, horizon=0)),
    "lstm": (250, lambda: Supervised(RecurrentLM(news().vocabulary, 16, "lstm"), news(), batch_size=4, horizon=0)),
    "transformer": (
        250,
        lambda: Supervised(TransformerLM(news().vocabulary, 24, blocks=1), news(), batch_size=4, horizon=0),
    ),
    "vit": (250, lambda: Supervised(ViT(10, 24, blocks=1), fashion(16), batch_size=8, horizon=0)),
}

PAIRS, TASKS_A_STEP, SIGMA = 6, 5, 0.07
# Of the objective: the loss at the end of a run, and that of the eighth after its middle.
SHARES = (0.75, 0.25)
SHORTEST = 100


class Runs(NamedTuple):
    """Compiled functions of a task.

    Attributes:
      losses: from theta, keys `[runs]` and a number of steps to log losses `[runs, 2]`: at the end, after the middle.
      estimate: from theta, perturbations `[pairs, ...]`, keys `[pairs]`, a number of steps, and log losses and slopes
        `[2]` of the nominal term, to a gradient and the standard deviation of what it averages.
    """

    losses: Callable[..., Array]
    estimate: Callable[..., tuple[PyTree, Array]]


def runs_of(problem: Problem, weights: MetaWeights) -> Runs:
    """The functions of a task."""

    def run(theta: PyTree, key: Array, steps: Array) -> Array:
        init_key, batch_key, scale_key = jax.random.split(key, 3)
        scale = jnp.exp(0.3 * jax.random.normal(scale_key))
        params = jax.tree.map(lambda x: x * scale if x.ndim > 1 else x, problem.init(init_key))
        optimizer = unf(MetaWeights(theta, weights.architecture, None), total_steps=steps)
        low, high = steps // 2, steps // 2 + steps // 8

        def step(t: Array, carry: Any) -> Any:
            params, state, first, middle = carry
            loss, grads = jax.value_and_grad(problem.loss)(params, problem.sample(jax.random.fold_in(batch_key, t)))
            updates, state = optimizer.update(grads, state, params)
            middle += jnp.where((t >= low) & (t < high), loss, 0) / (high - low)
            return optax.apply_updates(params, updates), state, jnp.where(t == 0, loss, first), middle

        carry = params, optimizer.init(params), jnp.float32(0), jnp.float32(0)
        params, _, first, middle = jax.lax.fori_loop(0, steps, step, carry)
        keys = jax.random.split(jax.random.fold_in(batch_key, 1_000_003), 8)
        end = jnp.mean(jax.vmap(lambda key: problem.loss(params, problem.sample(key)))(keys))
        losses = jnp.nan_to_num(jnp.stack([end, middle]), nan=1e9, posinf=1e9)
        return jnp.log(jnp.clip(losses, 1e-7, 3 * first))

    @jax.jit
    def losses(theta: PyTree, keys: Array, steps: Array) -> Array:
        return jax.vmap(lambda key: run(theta, key, steps))(keys)

    @jax.jit
    def estimate(
        theta: PyTree, noise: PyTree, keys: Array, steps: Array, reference: Array, slope: Array
    ) -> tuple[PyTree, Array]:
        both = jax.tree.map(lambda x, e: jnp.concatenate([x + e, x - e]), theta, noise)
        found = jax.vmap(lambda theta, key: run(theta, key, steps))(both, jnp.concatenate([keys, keys]))
        # Steps lost, as a logarithm, and bounded.
        lost = 1.5 * jnp.tanh((found - reference) / slope / 1.5) @ jnp.asarray(SHARES)
        halves = (lost[:PAIRS] - lost[PAIRS:]) / 2
        return jax.tree.map(lambda e: jnp.tensordot(halves, e, 1) / PAIRS / SIGMA**2, noise), jnp.std(halves)

    return Runs(losses, estimate)


class Reference(NamedTuple):
    """Log losses `[lengths, 2]` of the nominal term in runs of some lengths."""

    lengths: np.ndarray
    losses: np.ndarray

    def at(self, steps: int) -> tuple[np.ndarray, np.ndarray]:
        """The log losses in runs of other lengths, and how fast they fall with the logarithm of the length."""
        x, y, here = np.log(self.lengths), self.losses, np.log(steps)
        k = min(max(int(np.searchsorted(x, here)) - 1, 0), len(x) - 2)
        whole, local = (y[0] - y[-1]) / (x[-1] - x[0]), (y[k] - y[k + 1]) / (x[k + 1] - x[k])
        losses = np.array([np.interp(here, x, column) for column in y.T])
        return losses.astype(np.float32), np.maximum((whole + np.maximum(local, 0)) / 2, 0.02).astype(np.float32)


def main() -> None:
    """Runs it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=400, help="outer steps")
    parser.add_argument("--learning-rate", type=float, default=0.01)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--longest", type=int, help="the longest run of any task")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    cap = {name: min(TASKS[name][0], options.longest or TASKS[name][0]) for name in options.tasks}

    weights = init_weights(MIXTURE, make_spec((), jnp.zeros(())), jax.random.key(0), InitialScalars(beta=1.0))
    # The last layer begins at zero: f = 0.
    network = (weights.theta.network[0], jax.tree.map(jnp.zeros_like, weights.theta.network[1]))
    nominal = weights.theta._replace(network=network)
    runs = {name: runs_of(TASKS[name][1](), weights) for name in options.tasks}
    transformation = optax.adam(optax.cosine_decay_schedule(options.learning_rate, options.steps, 0.1), 0.9, 0.98)
    theta, state, done = nominal, transformation.init(nominal.network), 0
    references: dict[str, Reference] = {}
    spread: dict[str, float] = {}
    checkpoint = options.out / "state.pkl"
    if checkpoint.exists():
        theta, state, done, references, spread = pickle.loads(checkpoint.read_bytes())

    def save() -> None:
        with replaced(checkpoint) as temporary:
            Path(temporary).write_bytes(pickle.dumps(jax.device_get((theta, state, done, references, spread))))
        save_weights(options.out / "weights.safetensors", MetaWeights(theta, MIXTURE, None))

    fixed = jax.random.split(jax.random.key(77), 8)
    for name in options.tasks:
        if name not in references:
            lengths = np.unique(np.geomspace(0.8 * SHORTEST, cap[name], 4).round().astype(int))
            losses = [np.asarray(runs[name].losses(nominal, fixed, int(n))).mean(0) for n in lengths]
            references[name] = Reference(lengths, np.stack(losses))
            save()

    @jax.jit
    def apply(network: PyTree, state: Any, gradients: tuple[PyTree, ...]) -> tuple[PyTree, Any]:
        mean = jax.tree.map(lambda *g: sum(g) / len(g), *gradients)
        updates, state = transformation.update(mean, state, network)
        return optax.apply_updates(network, updates), state

    rng, queue, start = np.random.default_rng(done), [], time.time()
    while done < options.steps:
        gradients = []
        for _ in range(TASKS_A_STEP):
            queue = queue or list(rng.permutation(options.tasks))
            name = str(queue.pop())
            steps = int(np.exp(rng.uniform(np.log(SHORTEST), np.log(cap[name]))))
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), done), options.tasks.index(name))
            noise_key, run_key = jax.random.split(key)
            leaves, structure = jax.tree.flatten(theta.network)
            draws = zip(jax.random.split(noise_key, len(leaves)), leaves, strict=True)
            noise = structure.unflatten([SIGMA * jax.random.normal(k, (PAIRS, *x.shape)) for k, x in draws])
            zero = jax.tree.map(lambda x: jnp.zeros((PAIRS, *x.shape)), theta.scalars)
            gradient, found = runs[name].estimate(
                theta,
                theta._replace(scalars=zero, network=noise),
                jax.random.split(run_key, PAIRS),
                steps,
                *references[name].at(steps),
            )
            spread[name] = 0.9 * spread.get(name, float(found)) + 0.1 * float(found)
            # No task is heard above the others because it is noisy.
            gradients.append(jax.tree.map(functools.partial(_over, spread[name] + 0.03), gradient.network))
        network, state = apply(theta.network, state, tuple(gradients))
        theta, done = theta._replace(network=network), done + 1
        if done % 50 == 0 or done == options.steps:
            report(runs, theta, references, fixed, cap, f"{done} outer steps, {time.time() - start:.0f} s")
        if done % 10 == 0 or done == options.steps:
            save()


def _over(size: float, x: Array) -> Array:
    return x / size


def report(
    runs: dict[str, Runs], theta: PyTree, references: dict[str, Reference], keys: Array, cap: dict[str, int], what: str
) -> None:
    """Prints by how many steps, as a logarithm, the longest runs are behind the nominal term."""
    lost = {}
    for name, length in cap.items():
        reference, slope = references[name].at(length)
        lost[name] = float(((np.asarray(runs[name].losses(theta, keys, length)) - reference) / slope)[:, 0].mean())
    print(what, f"mean {np.mean(list(lost.values())):+.3f}", *(f"{n} {x:+.2f}" for n, x in lost.items()), flush=True)


if __name__ == "__main__":
    main()
