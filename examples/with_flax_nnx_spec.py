"""`flax.nnx.Optimizer` with a spec: which axes permute together is inferred from the loss, on handwritten digits.

python examples/with_flax_nnx_spec.py

The gates of the recurrent layer are one array. With the spec each is a matrix of its own.
"""

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from sklearn.datasets import load_digits

import optax_unf

STEPS = 200


class Reader(nnx.Module):
    """Reads an image row by row, with an LSTM whose four gates are one array."""

    def __init__(self, rngs: nnx.Rngs):
        self.gates = nnx.Linear(8 + 32, 4 * 32, rngs=rngs)
        self.out = nnx.Linear(32, 10, rngs=rngs)

    def __call__(self, rows: jax.Array) -> jax.Array:
        hidden = cell = jnp.zeros((len(rows), 32))
        for row in jnp.moveaxis(rows, 1, 0):
            into, forget, value, out = jnp.split(self.gates(jnp.concatenate([row, hidden], 1)), 4, axis=1)
            cell = nnx.sigmoid(forget) * cell + nnx.sigmoid(into) * jnp.tanh(value)
            hidden = nnx.sigmoid(out) * jnp.tanh(cell)
        return self.out(hidden)


def loss_of(model: Reader, rows: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(model(rows), labels).mean()


@nnx.jit
def step(model: Reader, optimizer: nnx.Optimizer, rows: jax.Array, labels: jax.Array) -> jax.Array:
    value, grads = nnx.value_and_grad(loss_of)(model, rows, labels)
    optimizer.update(model, grads)
    return value


def main() -> float:
    pixels, digits = load_digits(return_X_y=True)
    rows, labels = jnp.asarray(pixels, jnp.float32).reshape(-1, 8, 8) / 16, jnp.asarray(digits)
    model = Reader(nnx.Rngs(0))

    # The same parameters that nnx.Optimizer hands on, and the loss as a function of them.
    graph, params = nnx.split(model, nnx.Param)
    spec = optax_unf.infer_spec(
        lambda p, *batch: loss_of(nnx.merge(graph, p), *batch), params, rows, labels, io="permute"
    )
    print(optax_unf.describe_matrices(params, spec))

    optimizer = nnx.Optimizer(model, optax_unf.unf(total_steps=STEPS, spec=spec), wrt=nnx.Param)
    loss = jnp.inf
    for _ in range(STEPS):
        loss = step(model, optimizer, rows, labels)
    print(f"training loss after {STEPS} steps: {loss:.4f}")
    return float(loss)


if __name__ == "__main__":
    main()
