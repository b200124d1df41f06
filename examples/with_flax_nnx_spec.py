"""A flax.nnx model and `flax.nnx.Optimizer`, on handwritten digits.

python examples/with_flax_nnx.py
"""

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from sklearn.datasets import load_digits

import optax_unf

STEPS = 200


class MLP(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(64, 32, rngs=rngs)
        self.out = nnx.Linear(32, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.out(nnx.relu(self.hidden(x)))


@nnx.jit
def step(model: MLP, optimizer: nnx.Optimizer, images: jax.Array, labels: jax.Array) -> jax.Array:
    def loss(model):
        return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()

    value, grads = nnx.value_and_grad(loss)(model)
    optimizer.update(model, grads)
    return value


def main() -> float:
    pixels, digits = load_digits(return_X_y=True)
    images, labels = jnp.asarray(pixels, jnp.float32) / 16, jnp.asarray(digits)
    model = MLP(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax_unf.unf(total_steps=STEPS), wrt=nnx.Param)
    loss = jnp.inf
    for _ in range(STEPS):
        loss = step(model, optimizer, images, labels)
    print(f"training loss after {STEPS} steps: {loss:.4f}")
    return float(loss)


if __name__ == "__main__":
    main()
