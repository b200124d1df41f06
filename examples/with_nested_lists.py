"""Parameters in plain lists, with a spec that says which axes permute together, on handwritten digits.

python examples/with_nested_lists.py
"""

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

import optax_unf

STEPS = 200
WIDTHS = [64, 32, 32, 10]
# The neurons of layer n have the name n; the first and the last axis are pixels and classes.
SPEC = [[(n, n + 1), (n + 1,)] for n in range(len(WIDTHS) - 1)]


def init(key: jax.Array):
    keys = jax.random.split(key, len(WIDTHS) - 1)
    return [
        [jax.random.normal(k, (i, o)) / jnp.sqrt(i), jnp.zeros(o)]
        for k, i, o in zip(keys, WIDTHS, WIDTHS[1:], strict=False)
    ]


def loss(params, images, labels):
    x = images
    for kernel, bias in params[:-1]:
        x = jax.nn.relu(x @ kernel + bias)
    kernel, bias = params[-1]
    return optax.softmax_cross_entropy_with_integer_labels(x @ kernel + bias, labels).mean()


def main() -> float:
    pixels, digits = load_digits(return_X_y=True)
    images, labels = jnp.asarray(pixels, jnp.float32) / 16, jnp.asarray(digits)
    params = init(jax.random.key(0))
    optimizer = optax_unf.unf(total_steps=STEPS, spec=SPEC)

    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params, images, labels)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), value

    _, losses = jax.lax.scan(step, (params, optimizer.init(params)), length=STEPS)
    print(f"training loss after {STEPS} steps: {losses[-1]:.4f}")
    return float(losses[-1])


if __name__ == "__main__":
    main()
