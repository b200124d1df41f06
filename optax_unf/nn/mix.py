"""Mixing: one matrix product for all contractions that have a signature."""

import dataclasses
import functools
import operator
from collections.abc import Callable, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from optax_unf.nn.contract import Expansion, Tensor, contractions, expand
from optax_unf.nn.meetings import (
    Meeting,
    Role,
    is_entry_or_mean,
    is_own,
    label_of,
    mean_index,
    meeting_of,
    meetings,
    most_terms,
    role_of,
)
from optax_unf.nn.product import apart, product, together

# Outputs have unit variance at initialization. Half of it comes from the entry itself, so that it neither
# vanishes for inputs with zero mean nor grows with the number of leaves.
_OWN_SHARE = 0.5

Matrix: TypeAlias = Callable[[str, np.ndarray], Float[Array, "..."]]
"""A parameter of the layer by its name, given the standard deviations of its entries at initialization."""


@dataclasses.dataclass(frozen=True)
class Arrived:
    """Stands for a contraction of a large leaf that has been multiplied before it was averaged.

    Attributes:
      products: its product with `full_rows` or `tied_rows`, the parts of which arrive at the leaves that it reaches.
    """

    products: Float[Array, "outputs *kept"]


Contracted: TypeAlias = Sequence[Array | Arrived]


def mix_full(
    matrix: Matrix, leaves: tuple[Tensor, ...], contracted: Sequence[Contracted], channels: int, use_bias: bool
) -> list[list[Array]]:
    """The broadcastable terms of every output leaf, with a matrix for every pair of contraction and expansion.

    Args:
      matrix: the layer's parameters.
      leaves: the tensors.
      contracted: the contractions of each.
      channels: output channels.
      use_bias: add the constant maps.
    """
    terms: list[list[Array]] = [[] for _ in leaves]
    heights = _heights(contracted)
    for meeting in meetings(leaves):
        kernel = _full_kernel(matrix, meeting, leaves, heights, channels)
        to_each = widths(meeting, leaves, channels)
        rows = np.cumsum([0, *(heights[leaf] for leaf, _ in meeting.departures)])
        arriving = [(contracted[leaf][k], _order(leaves, leaf, k)) for leaf, k in meeting.departures]
        products = _products(contracted, meeting, leaves)
        held = [n for n, (x, _) in enumerate(arriving) if not isinstance(x, Arrived)]
        if held:
            if len(held) < len(arriving):
                kernel = jnp.concatenate([kernel[rows[n] : rows[n + 1]] for n in held])
            y = _joint_product(kernel, [arriving[n] for n in held])  # type: ignore[misc]
            if use_bias and not meeting.signature:
                y += matrix("bias", np.zeros(sum(to_each))).astype(y.dtype)
            products.append(y)
        parts = apart(functools.reduce(operator.add, products), to_each)
        for part, (leaf, expansion) in zip(parts, meeting.arrivals, strict=True):
            terms[leaf].append(expand(part, expansion, leaves[leaf].sizes))
    return terms


def full_rows(
    matrix: Matrix, leaves: tuple[Tensor, ...], heights: Sequence[int], departure: tuple[int, int], channels: int
) -> Float[Array, "inputs outputs"]:
    """The matrix from one contraction to all that `mix_full` makes of it."""
    meeting = meeting_of(leaves, departure)
    kernel = _full_kernel(matrix, meeting, leaves, list(heights), channels)
    start = sum(heights[leaf] for leaf, _ in meeting.departures[: meeting.departures.index(departure)])
    return kernel[start : start + heights[departure[0]]]


def mix_tied(
    matrix: Matrix, leaves: tuple[Tensor, ...], contracted: Sequence[Contracted], channels: int, use_bias: bool
) -> list[list[Array]]:
    """As `mix_full`, with matrices that belong to pairs of roles rather than to pairs of leaves.

    A leaf sees each of its entries and its mean, whatever its rank; then, for each role, the mean over all leaves
    in it, and its own contraction in that role.
    """
    kernel = _tied_kernels(matrix, leaves, _heights(contracted)[0], channels)
    terms: list[list[Array]] = [[] for _ in leaves]
    for leaf, tensor in enumerate(leaves):
        whole, average = contracted[leaf][0], contracted[leaf][mean_index(tensor)]
        assert not isinstance(average, Arrived)
        constant = product(kernel("mean"), average)
        if use_bias:
            constant += matrix("bias", np.zeros(channels)).astype(constant.dtype)
        terms[leaf].append(constant.reshape(-1, *(1 for _ in tensor.sizes)))
        if not isinstance(whole, Arrived):
            terms[leaf].append(product(kernel("entry"), whole, widen=True))
    for meeting in meetings(leaves):
        roles = _roles(meeting, leaves)
        held = {
            role: [x for x in (contracted[leaf][k] for leaf, k in members) if not isinstance(x, Arrived)]
            for role, members in roles.items()
        }
        # Contractions in one role have their axes in one order.
        pooled = [
            (functools.reduce(jnp.add, xs) / len(roles[role]), _order(leaves, *roles[role][0]))
            for role, xs in held.items()
            if xs
        ]
        arriving: dict[str, Array] = {}
        for leaf, expansion in meeting.arrivals:
            labels = [label_of(role, expansion) for role, xs in held.items() if xs]
            total: list[Array] = []
            if pooled:
                # Leaves in the same role receive the same.
                if labels[0] not in arriving:
                    rows = jnp.concatenate([kernel("all " + label) for label in labels])
                    arriving[labels[0]] = _joint_product(rows, pooled, widen=True)
                total.append(arriving[labels[0]])
            own = _own(meeting, leaves, leaf, expansion)
            own = [(label, k) for label, k in own if not isinstance(contracted[leaf][k], Arrived)]
            if own:
                rows = jnp.concatenate([kernel("own " + label) for label, _ in own])
                xs = [(contracted[leaf][k], _order(leaves, leaf, k)) for _, k in own]
                total.append(_joint_product(rows, xs, widen=True))
            terms[leaf] += [expand(y, expansion, leaves[leaf].sizes) for y in total]
        products = _products(contracted, meeting, leaves)
        if products:
            parts = apart(functools.reduce(operator.add, products), widths(meeting, leaves, channels))
            for part, (leaf, expansion) in zip(parts, meeting.arrivals, strict=True):
                terms[leaf].append(expand(part, expansion, leaves[leaf].sizes))
    return terms


def tied_rows(
    matrix: Matrix, leaves: tuple[Tensor, ...], heights: Sequence[int], departure: tuple[int, int], channels: int
) -> Float[Array, "inputs outputs"]:
    """The matrix from one contraction to all that `mix_tied` makes of it, put together from tied ones."""
    kernel = _tied_kernels(matrix, leaves, heights[0], channels)
    return untied_rows(kernel, meeting_of(leaves, departure), leaves, departure)


def untied_rows(
    kernel: Callable[[str], Float[Array, "i o"]],
    meeting: Meeting,
    leaves: tuple[Tensor, ...],
    departure: tuple[int, int],
) -> Float[Array, "i outputs"]:
    """The matrix from one departure to all arrivals of a meeting, put together from tied ones."""
    leaf, k = departure
    role = role_of(contractions(leaves[leaf].names)[k][0])
    sharing = len(_roles(meeting, leaves)[role])
    columns = []
    for target, expansion in meeting.arrivals:
        label = label_of(role, expansion)
        column = kernel("all " + label) / sharing
        if target == leaf and not is_entry_or_mean(label):
            column += kernel("own " + label)
        elif target == leaf:
            column = column + kernel("entry") if k == 0 else column
            column = column + kernel("mean") if k == mean_index(leaves[leaf]) else column
        columns.append(column)
    return jnp.concatenate(columns, axis=1)


def _products(contracted: Sequence[Contracted], meeting: Meeting, leaves: tuple[Tensor, ...]) -> list[Array]:
    """What has been multiplied already."""
    departures = [(contracted[leaf][k], _order(leaves, leaf, k)) for leaf, k in meeting.departures]
    return [_by_signature(x.products, order) for x, order in departures if isinstance(x, Arrived)]


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


def std(*, own: bool, fan_in: int, others: int) -> float:
    """The standard deviation of a matrix at initialization: of a leaf's own entries, or of one of the other terms."""
    if own:
        return float(np.sqrt((_OWN_SHARE if others else 1.0) / max(fan_in, 1)))
    return float(np.sqrt((1.0 - _OWN_SHARE) / max(others, 1)))


def normal(std: np.ndarray) -> Callable[[Array], Float[Array, "..."]]:
    """An initializer: normal numbers with these standard deviations."""
    return lambda key: jax.random.normal(key, std.shape) * jnp.asarray(std, jnp.float32)


def _heights(contracted: Sequence[Contracted]) -> list[int]:
    """Input channels of each leaf. The last contraction is never too large to hold."""
    return [xs[-1].shape[0] for xs in contracted]  # type: ignore[union-attr]


def widths(meeting: Meeting, leaves: tuple[Tensor, ...], channels: int) -> list[int]:
    """How many channels go to each arrival."""
    return [channels * leaves[leaf].positions for leaf, _ in meeting.arrivals]


def _full_kernel(
    matrix: Matrix, meeting: Meeting, leaves: tuple[Tensor, ...], heights: list[int], channels: int
) -> Float[Array, "inputs outputs"]:
    others = _fan_in(leaves, tuple(heights))
    stds = [
        [std(own=is_own(d, a, leaves), fan_in=heights[a[0]], others=others[a[0]]) for a in meeting.arrivals]
        for d in meeting.departures
    ]
    rows = np.repeat(np.array(stds), [heights[leaf] for leaf, _ in meeting.departures], axis=0)
    return matrix("kernel" + meeting.label, np.repeat(rows, widths(meeting, leaves, channels), axis=1))


@functools.lru_cache(maxsize=64)
def _fan_in(leaves: tuple[Tensor, ...], heights: tuple[int, ...]) -> tuple[int, ...]:
    """Channels that arrive at each leaf besides its own entries."""
    others = [-height for height in heights]
    for meeting in meetings(leaves):
        total = sum(heights[source] for source, _ in meeting.departures)
        for leaf, _ in meeting.arrivals:
            others[leaf] += total
    return tuple(others)


def _tied_kernels(
    matrix: Matrix, leaves: tuple[Tensor, ...], height: int, channels: int
) -> Callable[[str], Float[Array, "inputs outputs"]]:
    other = float(np.sqrt((1.0 - _OWN_SHARE) / (height * most_terms(leaves))))
    entry = float(np.sqrt(_OWN_SHARE / height))
    return lambda name: matrix(name, np.full((height, channels), entry if name == "entry" else other))


def _roles(meeting: Meeting, leaves: tuple[Tensor, ...]) -> dict[Role, list[tuple[int, int]]]:
    roles: dict[Role, list[tuple[int, int]]] = {}
    for leaf, k in meeting.departures:
        roles.setdefault(role_of(contractions(leaves[leaf].names)[k][0]), []).append((leaf, k))
    return roles


def _own(meeting: Meeting, leaves: tuple[Tensor, ...], leaf: int, expansion: Expansion) -> list[tuple[str, int]]:
    """The contractions of the target itself, but for the entry and the mean, which each leaf sees anyway."""
    labelled = [
        (label_of(role_of(contractions(leaves[leaf].names)[k][0]), expansion), k) for k in meeting.of_leaf(leaf)
    ]
    return [(label, k) for label, k in labelled if not is_entry_or_mean(label)]
