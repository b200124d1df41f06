"""Layers in sequence, and pointwise maps between them."""

from collections.abc import Callable, Sequence

import jax
from jaxtyping import Array

from optax_unf._flax import linen as nn
from optax_unf.equivariant.layout import Features


class Sequential(nn.Module):
    """Applies layers one after another.

    Unlike `flax.linen.Sequential` it passes trees through whole: a tuple is one weight space, not arguments.

    Attributes:
      layers: callables from features to features.
    """

    layers: Sequence[Callable[[Features], Features]]

    def __call__(self, features: Features) -> Features:
        """Applies all layers."""
        for layer in self.layers:
            features = layer(features)
        return features


def pointwise(function: Callable[[Array], Array]) -> Callable[[Features], Features]:
    """The map that applies `function` to every leaf: equivariant whatever it does to single entries."""
    return lambda features: jax.tree.map(function, features)


nf_relu = pointwise(jax.nn.relu)
