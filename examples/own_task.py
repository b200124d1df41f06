"""A task of your own: a physics-informed network for Poisson's equation, and an optimizer meta-trained on it.

    python examples/own_task.py

A task is three methods. A few outer steps of backpropagation through inner steps turn the pretrained weights
`mlp-fashion-mnist-deepsets` into an optimizer for it, which is then compared with Adam at its best rate of a grid,
found on other seeds. Takes less than a minute on two CPU cores.
"""

import argparse
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

import optax_unf
from optax_unf.meta import Backprop, InnerProblem, MetaTrainConfig, Stage, Training, learned_training, meta_train

HORIZON = 500
RATES = np.logspace(-3, -1, 7)


class Poisson:
    """-u'' = f on [0, 1], u(0) = u(1) = 0, with f such that u = sin(pi x) / pi**2 + sin(3 pi x) / (3 pi)**2.

    The network's u is x (1 - x) times a small tanh network: right at both ends, whatever the weights.
    """

    axes = (("x", "a"), ("a",), ("a", "b"), ("b",), ("b", "u"))

    def init(self, key: Array) -> tuple[Array, ...]:
        first, second, last = jax.random.split(key, 3)
        return (
            2 * jax.random.normal(first, (1, 16)),
            jnp.zeros(16),
            jax.random.normal(second, (16, 16)) / 4,
            jnp.zeros(16),
            jax.random.normal(last, (16, 1)) / 4,
        )

    def sample(self, key: Array) -> Float[Array, " places"]:
        """Places at which the equation is to hold."""
        return jax.random.uniform(key, (32,))

    def loss(self, params: tuple[Array, ...], batch: Float[Array, " places"]) -> Float[Array, ""]:
        """The mean square of u'' + f."""
        curvature = jax.vmap(jax.grad(jax.grad(self.solution, 1), 1), (None, 0))(params, batch)
        source = jnp.sin(jnp.pi * batch) + jnp.sin(3 * jnp.pi * batch)
        return jnp.mean((curvature + source) ** 2)

    def solution(self, params: tuple[Array, ...], x: Float[Array, ""]) -> Float[Array, ""]:
        first, first_bias, second, second_bias, last = params
        hidden = jnp.tanh(jnp.tanh(x[None] @ first + first_bias) @ second + second_bias)
        return x * (1 - x) * (hidden @ last)[0]

    def error(self, params: tuple[Array, ...]) -> Float[Array, ""]:
        """The root mean square of the difference from the exact solution, relative to that of the solution."""
        x = jnp.linspace(0, 1, 101)
        exact = jnp.sin(jnp.pi * x) / jnp.pi**2 + jnp.sin(3 * jnp.pi * x) / (3 * jnp.pi) ** 2
        found = jax.vmap(self.solution, (None, 0))(params, x)
        return jnp.linalg.norm(found - exact) / jnp.linalg.norm(exact)


def trainer(task: Poisson, problem: InnerProblem) -> Callable[[PyTree, Array], np.ndarray]:
    """A function that trains once for each key: the loss over the last 50 steps and the error of u, `[keys, 2]`."""

    @jax.jit
    def run(theta: PyTree, key: Array) -> Array:
        run, losses = jax.lax.scan(lambda run, _: problem.step(theta, run), problem.start(theta, key), length=HORIZON)
        return jnp.stack([losses[-50:].mean(), task.error(run.params)])

    return lambda theta, keys: np.stack([run(theta, key) for key in keys])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--outer-steps", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    task = Poisson()
    meta_key, tuning_key, key = jax.random.split(jax.random.key(0), 3)
    tuning_keys, keys = jax.random.split(tuning_key, 2), jax.random.split(key, args.seeds)

    spec = optax_unf.tasks.task_spec(task)
    pretrained = optax_unf.load_weights("mlp-fashion-mnist-deepsets")
    weights = optax_unf.transfer_weights(pretrained, pretrained.architecture, spec, meta_key)
    stage = Stage(Backprop(runs=8, truncation=50), args.outer_steps, learning_rate=3e-3, schedule="cosine", warmup=3)
    config = MetaTrainConfig((stage,), horizon=HORIZON, evaluate_every=20, evaluate_runs=8)
    result = meta_train(weights.architecture, task, config, meta_key, weights=weights)

    with_adam, learned = (
        trainer(task, Training(task, optax.adam)),
        trainer(task, learned_training(weights.architecture, task)),
    )
    tuning = [with_adam(rate, tuning_keys)[:, 0].mean() for rate in RATES]
    rate = RATES[np.nanargmin(tuning)]
    rows = {
        f"Adam, rate {rate:.2g}": with_adam(rate, keys),
        "pretrained": learned(weights.theta, keys),
        "meta-trained": learned(result.weights.theta, keys),
    }
    print(f"\nPoisson's equation, {HORIZON} steps, mean of {args.seeds} seeds\n")
    print(f"{'optimizer':20} {'loss, last 50':>14} {'error of u':>12}")
    for name, values in rows.items():
        loss, error = values.mean(0)
        print(f"{name:20} {loss:14.5f} {100 * error:10.2f} %")


if __name__ == "__main__":
    main()
