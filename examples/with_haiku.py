"""A haiku model, whose parameters are a dict of dicts, on handwritten digits.

python examples/with_haiku.py
"""

import haiku as hk
import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

import optax_unf

MODEL = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([32, 10])(x)))
STEPS = 200
OPTIMIZER = optax_unf.unf(total_steps=STEPS)


@jax.jit
def step(params, state, images, labels):
    def loss(params):
        return optax.softmax_cross_entropy_with_integer_labels(MODEL.apply(params, images), labels).mean()

    value, grads = jax.value_and_grad(loss)(params)
    updates, state = OPTIMIZER.update(grads, state, params)
    return optax.apply_updates(params, updates), state, value


def main() -> float:
    pixels, digits = load_digits(return_X_y=True)
    images, labels = jnp.asarray(pixels, jnp.float32) / 16, jnp.asarray(digits)
    params = MODEL.init(jax.random.key(0), images[:1])
    state = OPTIMIZER.init(params)
    loss = jnp.inf
    for _ in range(STEPS):
        params, state, loss = step(params, state, images, labels)
    print(f"training loss after {STEPS} steps: {loss:.4f}")
    return float(loss)


if __name__ == "__main__":
    main()
