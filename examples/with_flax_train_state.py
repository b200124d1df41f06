"""A flax.linen model and `flax.training.train_state.TrainState`, on handwritten digits.

python examples/with_flax_train_state.py
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.training.train_state import TrainState
from sklearn.datasets import load_digits

import optax_unf

STEPS = 200


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(10)(nn.relu(nn.Dense(32)(x)))


@jax.jit
def step(state: TrainState, images: jax.Array, labels: jax.Array) -> tuple[TrainState, jax.Array]:
    def loss(params):
        logits = state.apply_fn({"params": params}, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    value, grads = jax.value_and_grad(loss)(state.params)
    return state.apply_gradients(grads=grads), value


def main() -> float:
    pixels, digits = load_digits(return_X_y=True)
    images, labels = jnp.asarray(pixels, jnp.float32) / 16, jnp.asarray(digits)
    model = MLP()
    params = model.init(jax.random.key(0), images[:1])["params"]
    optimizer = optax_unf.unf(total_steps=STEPS)
    state = TrainState.create(apply_fn=model.apply, params=params, tx=optimizer)
    loss = jnp.inf
    for _ in range(STEPS):
        state, loss = step(state, images, labels)
    print(f"training loss after {STEPS} steps: {loss:.4f}")
    return float(loss)


if __name__ == "__main__":
    main()
