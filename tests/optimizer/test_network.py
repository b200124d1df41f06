"""Equivariant layers inside of f, against the same layers one by one."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from two_layers import SHAPES, SPEC, numbers

from optax_unf import (
    Architecture,
    InitialScalars,
    init_weights,
    load_weights,
    save_weights,
    scale_by_unf,
    transfer_weights,
)
from optax_unf.nn import NFN, UNF
from optax_unf.optimizer.features import TIME_SCALES


def first_features(w, g):
    """What f sees of a leaf at the first update: all momenta are multiples of the gradient."""
    scaled = [x / np.sqrt(np.mean(np.square(x))) for x in (w, *[g] * 7)]
    time = np.tanh(0 / np.array(TIME_SCALES) - 1)
    return np.stack([*scaled, *(np.full(w.shape, e) for e in time)], axis=-1)


@pytest.mark.parametrize(
    ("head", "coefficients", "equivariant_layers"),
    [("unf", "full", (1,)), ("unf", "tied", (2,)), ("unf", "tied", (1, 2)), ("nfn", "full", (1,))],
)
def test_layers_one_by_one(head, coefficients, equivariant_layers):
    architecture = Architecture(head, coefficients, 5, 3, equivariant_layers)
    weights = init_weights(architecture, SPEC, jax.random.key(3), InitialScalars(beta=0.5))
    params, grads = numbers(0), numbers(1)
    tx = scale_by_unf(weights, spec=SPEC)
    found, _ = tx.update(grads, tx.init(params), params)

    xs = {name: jnp.asarray(first_features(params[name], grads[name]), jnp.float32) for name in SHAPES}
    *layers, last = weights.theta.network
    for number, layer in enumerate([*layers, last]):
        channels = 1 if layer is last else 5
        if layer is last or number in equivariant_layers:
            module = NFN(SPEC, channels) if head == "nfn" else UNF(SPEC, channels, coefficients)
            xs = module.apply({"params": dict(layer)}, xs)
        else:
            kernel, bias = np.asarray(layer["kernel"]), np.asarray(layer["bias"])
            xs = {name: jnp.asarray(np.asarray(x) @ kernel + bias) for name, x in xs.items()}
        if layer is not last:
            xs = jax.tree.map(jax.nn.relu, xs)
    expected = {name: 0.1 * grads[name] + 0.5 * xs[name][..., 0] for name in SHAPES}
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-5)


def test_what_another_leaf_holds_is_processed_further():
    """A head alone sees means over a neuron's entries elsewhere; a layer before it, more."""
    params, grads = numbers(0), numbers(1)
    pairs = [(params, grads), [x | {"v": x["v"].at[0].set(x["v"][0, ::-1])} for x in (params, grads)]]

    def effect(equivariant_layers):
        architecture = Architecture("unf", "full", 8, 3, equivariant_layers)
        weights = init_weights(architecture, SPEC, jax.random.key(3), InitialScalars(beta=1.0))
        tx = scale_by_unf(weights, spec=SPEC)
        one, other = (tx.update(g, tx.init(w), w)[0]["w"] for w, g in pairs)
        return float(jnp.abs(one - other).max())

    assert effect(()) < 1e-6
    assert effect((1,)) > 1e-3


def test_transfer_keeps_equivariant_layers():
    tied = init_weights(Architecture("unf", "tied", 5, 3, (1,)), SPEC, jax.random.key(0), InitialScalars(beta=0.5))
    full = transfer_weights(tied, Architecture("unf", "full", 5, 3, (1,)), SPEC, jax.random.key(1))
    params, grads = numbers(0), numbers(1)
    results = []
    for weights in (tied, full):
        tx = scale_by_unf(weights, spec=SPEC)
        results.append(tx.update(grads, tx.init(params), params)[0])
    chex.assert_trees_all_close(*results, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="equivariant layers fit their own head"):
        transfer_weights(tied, Architecture("nfn", "full", 5, 3, (1,)), SPEC, jax.random.key(1))
    with pytest.raises(ValueError, match="must keep its hidden_channels, hidden_layers, equivariant_layers, pool"):
        transfer_weights(tied, Architecture("unf", "full", 5, 3), SPEC, jax.random.key(1))


@pytest.mark.parametrize("coefficients", ["full", "tied"])
def test_files_hold_equivariant_layers(tmp_path, coefficients):
    weights = init_weights(Architecture("unf", coefficients, 5, 3, (1, 2)), SPEC, jax.random.key(0))
    save_weights(tmp_path / "weights.safetensors", weights)
    loaded = load_weights(tmp_path / "weights.safetensors")
    assert loaded.architecture == weights.architecture
    chex.assert_trees_all_equal(loaded.theta, weights.theta)
