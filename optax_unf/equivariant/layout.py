"""From a pytree of features to a list of channels-first arrays in the order of a spec, further to parts, and back."""

import itertools
from collections.abc import Sequence
from typing import TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PyTree

from optax_unf.spec.leaf import join_parts, split_parts
from optax_unf.spec.paths import show_path
from optax_unf.spec.permutation_spec import PermutationSpec

Features: TypeAlias = PyTree[Float[ArrayLike, "..."]]


def flat_features(features: Features, spec: PermutationSpec) -> list[Float[Array, "... channels"]]:
    """The leaves in the order of the spec, checked against its shapes."""
    leaves = [jnp.asarray(x) for x in spec.flatten(features, "features")]
    for leaf, x in zip(spec.leaves, leaves, strict=True):
        if x.ndim == 0 or x.shape[:-1] != leaf.shape:
            mend = (
                "These seem to be the features of many networks: initialize the layer with those of one, and apply it "
                "by jax.vmap(layer.apply, (None, 0))(variables, features)."
                if x.shape[1:-1] == leaf.shape and x.ndim == len(leaf.shape) + 2
                else "Add a channel axis, or make the spec from parameters of this shape."
            )
            raise ValueError(
                f"The features of leaf {show_path(leaf.path)} must have shape {(*leaf.shape, 'channels')}, but have "
                f"{x.shape}. {mend}"
            )
    return leaves


def channels_first(features: Features, spec: PermutationSpec) -> list[Float[Array, "channels ..."]]:
    """As `flat_features`, with the channels first."""
    return [jnp.moveaxis(x, -1, 0) for x in flat_features(features, spec)]


def to_tree(leaves: list[Float[Array, "channels ..."]], like: Features, spec: PermutationSpec) -> Features:
    """The inverse of `channels_first`."""
    return spec.unflatten([jnp.moveaxis(x, 0, -1) for x in leaves], like)


def to_parts(
    leaves: Sequence[Float[Array, "channels ..."]], spec: PermutationSpec
) -> list[Float[Array, "channels ..."]]:
    """The parts of all leaves, in the order of `optax_unf.equivariant.contract.tensors`."""
    return [part for leaf, x in zip(spec.leaves, leaves, strict=True) for part in split_parts(x, leaf, leading=1)]


def from_parts(
    parts: Sequence[Float[Array, "channels ..."]], spec: PermutationSpec
) -> list[Float[Array, "channels ..."]]:
    """The inverse of `to_parts`."""
    rest = iter(parts)
    return [join_parts(list(itertools.islice(rest, len(leaf.parts))), leaf, leading=1) for leaf in spec.leaves]
