"""Trains three small networks with optax_unf.unf, which has nothing to tune, and with tuned optimizers.

    python examples/quickstart.py

A perceptron and a convolutional network read handwritten digits, a Transformer with fused query, key and value reads
Python's own documentation. Adam and Muon get a cosine schedule and their best rate of a grid, found on another seed;
Adam at 1e-3 is what people take who do not tune. Prints tables and writes curves to quickstart.png. Takes about two
minutes on two CPU cores.
"""

import argparse
import functools
import time
from pydoc_data.topics import topics

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import optax
from sklearn.datasets import load_digits
from tqdm import tqdm

import optax_unf

mpl.use("agg")
import matplotlib.pyplot as plt

RATES = 0.02 * 4.0 ** np.arange(-3, 2)
# Updates in a run, by task.
STEPS = {"perceptron": 300, "convolutions": 400, "Transformer": 400}


def normal(key, *shape):
    """Initial weights, with the last axis for outputs."""
    return jax.random.normal(key, shape) / np.sqrt(np.prod(shape[:-1]))


def init_perceptron(key):
    keys = jax.random.split(key, 3)
    return {
        f"layer_{n}": {"w": normal(k, *shape), "b": jnp.zeros(shape[1])}
        for n, (k, shape) in enumerate(zip(keys, [(64, 64), (64, 64), (64, 10)], strict=True))
    }


def perceptron(params, images):
    x = images.reshape(len(images), -1)
    for n in range(3):
        x = x @ params[f"layer_{n}"]["w"] + params[f"layer_{n}"]["b"]
        x = jax.nn.relu(x) if n < 2 else x
    return x


def init_convolutions(key):
    keys = jax.random.split(key, 3)
    return {
        "conv_0": {"w": normal(keys[0], 3, 3, 1, 8), "b": jnp.zeros(8)},
        "conv_1": {"w": normal(keys[1], 3, 3, 8, 16), "b": jnp.zeros(16)},
        "dense": {"w": normal(keys[2], 16, 10), "b": jnp.zeros(10)},
    }


def convolutions(params, images):
    x = images[..., None]
    for name in ("conv_0", "conv_1"):
        w, b = params[name]["w"], params[name]["b"]
        x = jax.nn.relu(
            jax.lax.conv_general_dilated(x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")) + b
        )
    return x.mean((1, 2)) @ params["dense"]["w"] + params["dense"]["b"]


def init_transformer(key, vocabulary, width=32):
    keys = jax.random.split(key, 7)
    return {
        "embed": normal(keys[0], width, vocabulary).T,
        "positions": 0.1 * jax.random.normal(keys[1], (32, width)),
        "qkv": normal(keys[2], width, 3 * width),
        "attend": normal(keys[3], width, width),
        "up": normal(keys[4], width, 4 * width),
        "down": normal(keys[5], 4 * width, width),
        "out": normal(keys[6], width, vocabulary),
    }


def transformer(params, tokens, heads=4):
    x = params["embed"][tokens] + params["positions"]
    q, k, v = jnp.split(_normed(x) @ params["qkv"], 3, axis=-1)
    q, k, v = (part.reshape(*part.shape[:-1], heads, -1) for part in (q, k, v))
    x += jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(x.shape) @ params["attend"]
    x += jax.nn.gelu(_normed(x) @ params["up"]) @ params["down"]
    return _normed(x) @ params["out"]


def _normed(x):
    return jax.nn.standardize(x)


def cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def digits_task(init, apply):
    """Initial parameters, the loss on a random batch, and the loss on held-out data."""
    images, labels = load_digits(return_X_y=True)
    images, labels = jnp.asarray(images, jnp.float32).reshape(-1, 8, 8) / 8 - 1, jnp.asarray(labels)
    order = jax.random.permutation(jax.random.key(0), len(labels))
    train, test = order[300:], order[:300]

    def loss(params, key):
        batch = jax.random.choice(key, train, (64,))
        return cross_entropy(apply(params, images[batch]), labels[batch])

    return init, loss, lambda params: cross_entropy(apply(params, images[test]), labels[test])


def text_task():
    """The same of predicting the next character."""
    characters, text = np.unique(list("\n".join(topics[name] for name in sorted(topics))), return_inverse=True)
    text, held_out = jnp.asarray(text[: len(text) * 9 // 10]), jnp.asarray(text[len(text) * 9 // 10 :])

    def windows(text, starts):
        window = text[starts[:, None] + jnp.arange(33)]
        return window[:, :-1], window[:, 1:]

    def loss(params, key):
        inputs, targets = windows(text, jax.random.randint(key, (16,), 0, len(text) - 33))
        return cross_entropy(transformer(params, inputs), targets)

    def test_loss(params):
        inputs, targets = windows(held_out, jnp.arange(0, len(held_out) - 33, 100))
        return cross_entropy(transformer(params, inputs), targets)

    return functools.partial(init_transformer, vocabulary=len(characters)), loss, test_loss


def trainer(task, steps, make_optimizer):
    """A compiled function of a rate and a key: the losses of all steps and the held-out loss after them."""
    init, loss, test_loss = task

    @jax.jit
    def train(rate, key):
        optimizer = make_optimizer(rate)
        init_key, batch_key = jax.random.split(key)
        params = init(init_key)

        def step(carry, key):
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params, key)
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), value

        keys = jax.random.split(batch_key, steps)
        (params, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), keys)
        return losses, test_loss(params)

    return train


def contenders(steps):
    """From a rate to an optimizer, and the rates to choose from."""
    return {
        "optax_unf.unf": (lambda rate: optax_unf.unf(total_steps=steps), None),
        "Adam, 1e-3": (lambda rate: optax.adam(1e-3), None),
        "Adam, cosine, tuned": (lambda rate: optax.adam(optax.cosine_decay_schedule(rate, steps)), RATES),
        "Muon, cosine, tuned": (lambda rate: optax.contrib.muon(optax.cosine_decay_schedule(rate, steps)), RATES),
    }


def run(train, rates, keys, steps):
    """Losses `[seeds, steps]`, held-out losses `[seeds]`, the rate, and the seconds of a step once compiled."""
    tuning_key, rate = jax.random.key(99), jnp.float32(1.0)
    if rates is not None:
        tried = [train(jnp.float32(rate), tuning_key)[0][-50:].mean() for rate in rates]
        rate = jnp.float32(rates[np.nanargmin(tried)])
    jax.block_until_ready(train(rate, tuning_key))
    start = time.perf_counter()
    results = jax.device_get([train(rate, key) for key in keys])
    seconds = (time.perf_counter() - start) / (len(keys) * steps)
    losses, held_out = (np.stack(x) for x in zip(*results, strict=True))
    return losses, held_out, rate if rates is not None else None, seconds


def smooth(losses):
    return np.stack([np.convolve(one, np.ones(20) / 20, "valid") for one in losses])


def report(name, results):
    print(f"\n{name}, {STEPS[name]} steps: mean of {len(next(iter(results.values()))[0])} seeds\n")
    print(f"{'optimizer':26}{'loss at 1/4':>12}{'at the end':>12}{'held out':>10}{'us a step':>11}")
    for label, (losses, held_out, rate, seconds) in results.items():
        label = label if rate is None else f"{label} ({rate:.2g})"
        mean = smooth(losses).mean(0)
        print(f"{label:26}{mean[len(mean) // 4]:12.4f}{mean[-1]:12.4f}{held_out.mean():10.4f}{seconds * 1e6:11.0f}")


def plot(all_results, path):
    figure, panels = plt.subplots(1, len(all_results), figsize=(12, 4), layout="constrained", squeeze=False)
    for panel, (name, results) in zip(panels[0], all_results.items(), strict=True):
        for label, (losses, *_) in results.items():
            mean = smooth(losses).mean(0)
            panel.plot(np.arange(len(mean)) + 20, mean, label=label)
        panel.set(title=name, xlabel="step", ylabel="training loss (nats)", yscale="log")
    panels[0][0].legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=STEPS, help="one of the networks alone")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--plot", default="quickstart.png")
    args = parser.parse_args()

    tasks = {
        "perceptron": digits_task(init_perceptron, perceptron),
        "convolutions": digits_task(init_convolutions, convolutions),
        "Transformer": text_task(),
    }
    if args.task:
        tasks = {args.task: tasks[args.task]}
    keys = jax.random.split(jax.random.key(0), args.seeds)
    all_results = {}
    with tqdm(total=4 * len(tasks), desc="training") as bar:
        for name, task in tasks.items():
            all_results[name] = {}
            for label, (make_optimizer, rates) in contenders(STEPS[name]).items():
                train = trainer(task, STEPS[name], make_optimizer)
                all_results[name][label] = run(train, rates, keys, STEPS[name])
                bar.update()

    for name, results in all_results.items():
        report(name, results)
    plot(all_results, args.plot)
    print(f"\nCurves written to {args.plot}")


if __name__ == "__main__":
    main()
