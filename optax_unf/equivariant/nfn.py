"""The equivariant linear layer of permutation-equivariant neural functionals, for feed-forward networks."""

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import NoReturn

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from optax_unf._xla import product, together
from optax_unf.equivariant.contract import Tensor, channels_to_positions, positions_to_channels, tensors
from optax_unf.equivariant.layout import from_parts, to_parts
from optax_unf.equivariant.mix import Kernels
from optax_unf.equivariant.plan import Plan, std
from optax_unf.spec.paths import show_path
from optax_unf.spec.permutation_spec import PermutationSpec


def feed_forward(
    params: Kernels, spec: PermutationSpec, xs: list[Float[Array, "i ..."]], channels: int
) -> list[Float[Array, "channels ..."]]:
    """The layer on all leaves, channels first, with the parameters of `nfn_plan`."""
    leaves = tensors(spec)
    inputs = [positions_to_channels(x, leaf) for x, leaf in zip(to_parts(xs, spec), leaves, strict=True)]
    outputs = [functools.reduce(operator.add, terms) for terms in _terms(params, spec, leaves, inputs, channels)]
    parts = [channels_to_positions(y, leaf, channels) for y, leaf in zip(outputs, leaves, strict=True)]
    return from_parts(parts, spec)


@functools.lru_cache(maxsize=64)
def nfn_plan(spec: PermutationSpec, inputs: int, channels: int, *, use_bias: bool = True) -> Plan:
    """The parameters: a matrix for the means of whole leaves, one a layer of neurons, one a kernel."""
    layers, leaves = neuron_layers(spec), tensors(spec)
    heights, widths = ([n * leaf.positions for leaf in leaves] for n in (inputs, channels))
    # Channels that each leaf reads besides its own entries: the means of all leaves, and those along its axes.
    others = [sum(heights)] * len(leaves)
    for layer in layers:
        for leaf, _ in layer:
            others[leaf] += sum(heights[source] for source, _ in layer if not _is_entry(source, leaf, leaves))

    def matrix(members: Sequence[int], is_own: Callable[[int, int], bool]) -> np.ndarray:
        stds = [[std(own=is_own(s, t), fan_in=heights[s], others=others[t]) for t in members] for s in members]
        rows, columns = ([sizes[leaf] for leaf in members] for sizes in (heights, widths))
        return np.repeat(np.repeat(stds, rows, axis=0), columns, axis=1)

    plan = {"network": matrix(range(len(leaves)), lambda s, t: False)}
    if use_bias:
        plan["bias"] = np.zeros(sum(widths))
    for n, layer in enumerate(layers):
        plan[f"neurons_{n}"] = matrix([leaf for leaf, _ in layer], functools.partial(_is_entry, leaves=leaves))
    for k, leaf in enumerate(leaves):
        if len(leaf.names) == 2:
            plan[f"kernel_{k}"] = matrix([k], lambda s, t: True)
    return plan


def _terms(
    params: Kernels, spec: PermutationSpec, leaves: tuple[Tensor, ...], xs: list[Array], channels: int
) -> list[list[Array]]:
    """The broadcastable terms of every output leaf.

    Terms that read the same means share one matrix product: one for the means of whole leaves, one per layer of
    neurons, one per kernel. Their number is linear in the number of leaves although every leaf reads every other.
    """
    layers = neuron_layers(spec)
    widths = [channels * leaf.positions for leaf in leaves]

    def split(y: Array, targets: Sequence[int]) -> list[Array]:
        return jnp.split(y, np.cumsum([widths[t] for t in targets])[:-1])

    along = {(leaf, axis): _mean_but(xs[leaf], axis + 1) for layer in layers for leaf, axis in layer}
    everything = range(len(leaves))
    whole = together([_mean_but(along[leaf, 0], None) for leaf in everything])
    y = product(params["network"], whole)
    if "bias" in params:
        y += params["bias"].astype(y.dtype)
    terms = [
        [part.reshape(-1, *(1 for _ in leaf.sizes))] for part, leaf in zip(split(y, everything), leaves, strict=True)
    ]

    for n, layer in enumerate(layers):
        members = [leaf for leaf, _ in layer]
        y = product(params[f"neurons_{n}"], together([along[end] for end in layer]))
        for (leaf, axis), part in zip(layer, split(y, members), strict=True):
            shape = [size if a == axis else 1 for a, size in enumerate(leaves[leaf].sizes)]
            terms[leaf].append(part.reshape(widths[leaf], *shape))

    for k, leaf in enumerate(leaves):
        if len(leaf.names) == 2:
            terms[k].append(product(params[f"kernel_{k}"], xs[k]))
    return terms


@functools.lru_cache(maxsize=64)
def neuron_layers(spec: PermutationSpec) -> tuple[tuple[tuple[int, int], ...], ...]:
    """For each layer of neurons, the `(leaf, axis)` pairs that have its name.

    Raises:
      ValueError: the leaves are not a chain of kernels with at most one bias a layer.
    """
    names = tuple(spec.sizes)

    def refuse(leaf: int, required: str, found: str) -> NoReturn:
        raise ValueError(
            f"NFN needs the weight space of a feed-forward network: {required}. But leaf "
            f"{show_path(spec.leaves[leaf].path)} with axes {spec.leaves[leaf].axes} {found}. Use optax_unf.nn.UNF, "
            f"which takes any spec."
        )

    for k, leaf in enumerate(spec.leaves):
        if len(leaf.parts) > 1:
            refuse(k, "no axis may be a Concat", f"has {len(leaf.parts)} parts")
    leaves = tensors(spec)
    layers: list[list[tuple[int, int]]] = [[] for _ in names]
    # Layers that kernels link have the same number.
    chain = list(range(len(names)))
    for k, leaf in enumerate(leaves):
        if len(leaf.names) not in (1, 2) or len(set(leaf.names)) < len(leaf.names):
            shown = ", ".join(repr(names[n]) for n in leaf.names) or "none"
            refuse(k, "every leaf must have one permuted axis or two with different names", f"has {shown}")
        for axis, n in enumerate(leaf.names):
            alike = [source for source, _ in layers[n] if len(leaves[source].names) == len(leaf.names)]
            if len(alike) == len(leaf.names):
                paths = " and ".join(show_path(leaves[source].path) for source in alike)
                refuse(k, "each name must be in at most two kernels and one bias", f"has {names[n]!r}, like {paths}")
            layers[n].append((k, axis))
        if len(leaf.names) == 2:
            here, there = (chain[n] for n in leaf.names)
            if here == there:
                refuse(k, "kernels must be in a chain, each sharing one name with the next", "closes a cycle")
            chain = [here if number == there else number for number in chain]
    for k, leaf in enumerate(leaves):
        if chain[leaf.names[0]] != chain[leaves[0].names[0]]:
            refuse(k, "all leaves must be in one chain", f"is not linked to leaf {show_path(leaves[0].path)}")
    return tuple(map(tuple, layers))


def _is_entry(source: int, target: int, leaves: Sequence[Tensor]) -> bool:
    """Whether what `target` reads of `source` along an axis is its own entry: a bias has no other axis."""
    return source == target and len(leaves[target].names) == 1


def _mean_but(x: Float[Array, "channels *axes"], axis: int | None) -> Array:
    """The mean over all axes but the channels and `axis`."""
    gone = [a for a in range(1, x.ndim) if a != axis]
    # A mean over nothing is 0, so that an empty leaf adds nothing to the others.
    return jnp.sum(x, gone) / max(math.prod(x.shape[a] for a in gone), 1)
