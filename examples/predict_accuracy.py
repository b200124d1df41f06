"""Accuracy predicted from weights alone: a population of small networks, and an invariant predictor of their success.

    python examples/predict_accuracy.py

400 perceptrons learn handwritten digits, each with a learning rate of its own, for a second. A predictor reads the
weights of 300 of them, whatever the order of their neurons, and says how many test digits the others get right. Takes
about a minute on two CPU cores.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree
from scipy.stats import kendalltau

from optax_unf import infer_spec
from optax_unf.nn import InvariantPredictor
from optax_unf.tasks.data.images import digits

HIDDEN = 12


def logits(params: PyTree, pixels: Float[Array, "batch pixels"]) -> Float[Array, "batch classes"]:
    return jnp.tanh(pixels @ params["w1"] + params["b1"]) @ params["w2"] + params["b2"]


def trained(key: Array) -> tuple[PyTree, Float[Array, ""]]:
    """A network after 200 steps of SGD, and its test accuracy."""
    train, test = DIGITS
    first, second, batches, rate = jax.random.split(key, 4)
    params = {
        "w1": jax.random.normal(first, (64, HIDDEN)) / 8,
        "b1": jnp.zeros(HIDDEN),
        "w2": jax.random.normal(second, (HIDDEN, 10)) / HIDDEN**0.5,
        "b2": jnp.zeros(10),
    }
    rate = 10 ** jax.random.uniform(rate, minval=-3, maxval=0)

    def step(params: PyTree, key: Array) -> tuple[PyTree, None]:
        rows = jax.random.randint(key, (32,), 0, len(train[0]))

        def loss(params: PyTree) -> Array:
            found = logits(params, train[0][rows])
            return optax.softmax_cross_entropy_with_integer_labels(found, train[1][rows]).mean()

        return jax.tree.map(lambda p, g: p - rate * g, params, jax.grad(loss)(params)), None

    params, _ = jax.lax.scan(step, params, jax.random.split(batches, 200))
    return params, jnp.mean(logits(params, test[0]).argmax(1) == test[1])


def fit(predictor: InvariantPredictor, population: PyTree, accuracy: Float[Array, " models"], epochs: int) -> PyTree:
    """The variables of a trained predictor."""
    variables = predictor.init(jax.random.key(1), population)
    params, normalization = variables["params"], variables["normalization"]
    optimizer = optax.adam(1e-3)

    def loss(params: PyTree, rows: Array) -> Float[Array, ""]:
        some = jax.tree.map(lambda x: x[rows], population)
        found = predictor.apply({"params": params, "normalization": normalization}, some)
        return optax.sigmoid_binary_cross_entropy(found[:, 0], accuracy[rows]).mean()  # type: ignore[index]

    @jax.jit
    def step(params: PyTree, state: optax.OptState, rows: Array) -> tuple[PyTree, optax.OptState]:
        updates, state = optimizer.update(jax.grad(loss)(params, rows), state)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for epoch in range(epochs):
        for rows in jax.random.permutation(jax.random.key(epoch), len(accuracy)).reshape(-1, 10):
            params, state = step(params, state, rows)
    return {"params": params, "normalization": normalization}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=400, help="a multiple of 40; three quarters are trained on")
    parser.add_argument("--epochs", type=int, default=10)
    arguments = parser.parse_args()
    keys = jax.random.split(jax.random.key(0), arguments.models)
    population, accuracy = jax.jit(jax.vmap(trained))(keys)
    known = arguments.models * 3 // 4
    train, test = (jax.tree.map(lambda x: x[part], population) for part in (slice(known), slice(known, None)))  # noqa: B023

    one = jax.tree.map(lambda x: x[0], population)
    spec = infer_spec(logits, one, DIGITS[0][0][:1], io="permute")
    predictor = InvariantPredictor(spec, channels=8, width=128)
    variables = fit(predictor, train, accuracy[:known], arguments.epochs)
    predicted = np.asarray(jax.nn.sigmoid(predictor.apply(variables, test)))[:, 0]  # type: ignore[index]
    actual = np.asarray(accuracy[known:])
    print(f"accuracies from {accuracy.min():.2f} to {accuracy.max():.2f}")
    tau = kendalltau(predicted, actual).statistic  # pyright: ignore[reportAttributeAccessIssue]
    print(f"Kendall's tau on {len(actual)} networks held out: {tau:.2f}")
    print(f"R2: {1 - np.mean((predicted - actual) ** 2) / np.var(actual):.2f}")


DIGITS = [(jnp.asarray(part.images.reshape(-1, 64)), jnp.asarray(part.labels)) for part in digits()]

if __name__ == "__main__":
    main()
