"""An equinox model, whose parameters are the arrays that `equinox.filter` picks, on handwritten digits.

python examples/with_equinox.py
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

import optax_unf

STEPS = 200
OPTIMIZER = optax_unf.unf(total_steps=STEPS)


@eqx.filter_jit
def step(model, state, images, labels):
    def loss(model):
        return optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model)(images), labels).mean()

    value, grads = eqx.filter_value_and_grad(loss)(model)
    updates, state = OPTIMIZER.update(grads, state, eqx.filter(model, eqx.is_inexact_array))
    return eqx.apply_updates(model, updates), state, value


def main() -> float:
    pixels, digits = load_digits(return_X_y=True)
    images, labels = jnp.asarray(pixels, jnp.float32) / 16, jnp.asarray(digits)
    model = eqx.nn.MLP(in_size=64, out_size=10, width_size=32, depth=1, key=jax.random.key(0))
    state = OPTIMIZER.init(eqx.filter(model, eqx.is_inexact_array))
    loss = jnp.inf
    for _ in range(STEPS):
        model, state, loss = step(model, state, images, labels)
    print(f"training loss after {STEPS} steps: {loss:.4f}")
    return float(loss)


if __name__ == "__main__":
    main()
