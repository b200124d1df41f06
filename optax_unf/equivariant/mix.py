"""Mixing: one matrix product for all contractions that have a signature."""

import dataclasses
import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from optax_unf._xla import apart, product, together
from optax_unf.equivariant.contract import Tensor, contractions, expand
from optax_unf.equivariant.signature_groups import (
    SignatureGroup,
    group_of,
    is_entry_or_mean,
    label_of,
    mean_index,
    own_labels,
    role_of,
    roles,
    signature_groups,
)

Kernels: TypeAlias = Mapping[str, Float[Array, "..."]]
"""The parameters of a layer, by their names in `optax_unf.equivariant.plan`."""


@dataclasses.dataclass(frozen=True)
class Multiplied:
    """Stands for a contraction of a large leaf that has been multiplied before it was averaged.

    Attributes:
      products: its product with `full_rows` or `tied_rows`, the parts of which arrive at the leaves that it reaches.
    """

    products: Float[Array, "outputs *kept"]


Contracted: TypeAlias = Sequence[Array | Multiplied]


def mix_full(
    kernels: Kernels, leaves: tuple[Tensor, ...], contracted: Sequence[Contracted], channels: int
) -> list[list[Array]]:
    """The broadcastable terms of every output leaf, with a matrix for every pair of contraction and expansion.

    Args:
      kernels: the layer's matrices, and a bias if it has one.
      leaves: the tensors.
      contracted: the contractions of each.
      channels: output channels.
    """
    terms: list[list[Array]] = [[] for _ in leaves]
    heights = _heights(contracted)
    for group in signature_groups(leaves):
        kernel = kernels["kernel" + group.label]
        to_each = widths(group, leaves, channels)
        rows = np.cumsum([0, *(heights[leaf] for leaf, _ in group.sources)])
        incoming = [(contracted[leaf][k], _order(leaves, leaf, k)) for leaf, k in group.sources]
        products = _products(contracted, group, leaves)
        held = [n for n, (x, _) in enumerate(incoming) if not isinstance(x, Multiplied)]
        if held:
            if len(held) < len(incoming):
                kernel = jnp.concatenate([kernel[rows[n] : rows[n + 1]] for n in held])
            y = _joint_product(kernel, [incoming[n] for n in held])  # type: ignore[misc]
            if "bias" in kernels and not group.signature:
                y += kernels["bias"].astype(y.dtype)
            products.append(y)
        parts = apart(functools.reduce(operator.add, products), to_each)
        for part, (leaf, expansion) in zip(parts, group.targets, strict=True):
            terms[leaf].append(expand(part, expansion, leaves[leaf].sizes))
    return terms


def full_rows(
    kernels: Kernels, leaves: tuple[Tensor, ...], inputs: int, source: tuple[int, int]
) -> Float[Array, "inputs outputs"]:
    """The matrix from one contraction to all that `mix_full` makes of it."""
    group = group_of(leaves, source)
    heights = [inputs * leaf.positions for leaf in leaves]
    start = sum(heights[leaf] for leaf, _ in group.sources[: group.sources.index(source)])
    return kernels["kernel" + group.label][start : start + heights[source[0]]]


def mix_tied(
    kernels: Kernels, leaves: tuple[Tensor, ...], contracted: Sequence[Contracted], channels: int
) -> list[list[Array]]:
    """As `mix_full`, with matrices that belong to pairs of roles rather than to pairs of leaves.

    A leaf sees each of its entries and its mean, whatever its rank; then, for each role, the mean over all leaves
    in it, and its own contraction in that role.
    """
    kernel = _or_zero(kernels)
    terms: list[list[Array]] = [[] for _ in leaves]
    for leaf, tensor in enumerate(leaves):
        whole, average = contracted[leaf][0], contracted[leaf][mean_index(tensor)]
        assert not isinstance(average, Multiplied)
        constant = product(kernel("mean"), average)
        if "bias" in kernels:
            constant += kernels["bias"].astype(constant.dtype)
        terms[leaf].append(constant.reshape(-1, *(1 for _ in tensor.sizes)))
        if not isinstance(whole, Multiplied):
            terms[leaf].append(product(kernel("entry"), whole, widen=True))
    for group in signature_groups(leaves):
        shared = roles(group, leaves)
        held = {
            role: [x for x in (contracted[leaf][k] for leaf, k in members) if not isinstance(x, Multiplied)]
            for role, members in shared.items()
        }
        # Contractions in one role have their axes in one order.
        pooled = [
            (functools.reduce(jnp.add, xs) / len(shared[role]), _order(leaves, *shared[role][0]))
            for role, xs in held.items()
            if xs
        ]
        incoming: dict[str, Array] = {}
        for leaf, expansion in group.targets:
            labels = [label_of(role, expansion) for role, xs in held.items() if xs]
            total: list[Array] = []
            if pooled:
                # Leaves in the same role receive the same.
                if labels[0] not in incoming:
                    rows = jnp.concatenate([kernel("all " + label) for label in labels])
                    incoming[labels[0]] = _joint_product(rows, pooled, widen=True)
                total.append(incoming[labels[0]])
            own = own_labels(group, leaves, leaf, expansion)
            own = [(label, k) for label, k in own if not isinstance(contracted[leaf][k], Multiplied)]
            if own:
                rows = jnp.concatenate([kernel("own " + label) for label, _ in own])
                xs = [(contracted[leaf][k], _order(leaves, leaf, k)) for _, k in own]
                total.append(_joint_product(rows, xs, widen=True))
            terms[leaf] += [expand(y, expansion, leaves[leaf].sizes) for y in total]
        products = _products(contracted, group, leaves)
        if products:
            parts = apart(functools.reduce(operator.add, products), widths(group, leaves, channels))
            for part, (leaf, expansion) in zip(parts, group.targets, strict=True):
                terms[leaf].append(expand(part, expansion, leaves[leaf].sizes))
    return terms


def tied_rows(kernels: Kernels, leaves: tuple[Tensor, ...], source: tuple[int, int]) -> Float[Array, "inputs outputs"]:
    """The matrix from one contraction to all that `mix_tied` makes of it, put together from tied ones."""
    kernel, group = _or_zero(kernels), group_of(leaves, source)
    leaf, k = source
    role = role_of(contractions(leaves[leaf].names)[k][0])
    sharing = len(roles(group, leaves)[role])
    columns = []
    for target, expansion in group.targets:
        label = label_of(role, expansion)
        column = kernel("all " + label) / sharing
        if target == leaf and not is_entry_or_mean(label):
            column += kernel("own " + label)
        elif target == leaf:
            column = column + kernel("entry") if k == 0 else column
            column = column + kernel("mean") if k == mean_index(leaves[leaf]) else column
        columns.append(column)
    return jnp.concatenate(columns, axis=1)


def _products(contracted: Sequence[Contracted], group: SignatureGroup, leaves: tuple[Tensor, ...]) -> list[Array]:
    """What has been multiplied already."""
    sources = [(contracted[leaf][k], _order(leaves, leaf, k)) for leaf, k in group.sources]
    return [_by_signature(x.products, order) for x, order in sources if isinstance(x, Multiplied)]


def _joint_product(
    kernel: Float[Array, "i o"], xs: Sequence[tuple[Array, tuple[int, ...]]], *, widen: bool = False
) -> Float[Array, "o *signature"]:
    """The matrix applied to several contractions side by side, each with its order of axes.

    The axes are sorted after the product, which has far fewer channels. Those of smaller contractions than the first,
    if they have another order, go before it.
    """
    first = xs[0][1]
    inverse = tuple(first.index(axis) for axis in range(len(first)))
    same = [x if order == first else _by_signature(_by_signature(x, order), inverse) for x, order in xs]
    return _by_signature(product(kernel, same[0] if len(same) == 1 else together(same), widen=widen), first)


def _by_signature(x: Float[Array, "c *kept"], order: tuple[int, ...]) -> Float[Array, "c *signature"]:
    return jnp.transpose(x, (0, *(axis + 1 for axis in order)))


def _order(leaves: tuple[Tensor, ...], leaf: int, k: int) -> tuple[int, ...]:
    return contractions(leaves[leaf].names)[k][0].order


def _heights(contracted: Sequence[Contracted]) -> list[int]:
    """Input channels of each leaf. The last contraction is never too large to hold."""
    return [xs[-1].shape[0] for xs in contracted]  # type: ignore[union-attr]


def widths(group: SignatureGroup, leaves: tuple[Tensor, ...], channels: int) -> list[int]:
    """How many channels go to each target."""
    return [channels * leaves[leaf].positions for leaf, _ in group.targets]


def _or_zero(kernels: Kernels) -> Callable[[str], Float[Array, "i o"]]:
    """Tied matrices by name: roles that the weights were not made for have none, and contribute nothing."""
    return lambda name: kernels[name] if name in kernels else jnp.zeros_like(kernels["entry"])
