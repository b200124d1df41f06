"""Algorithm 1 as written: one equivariant basis term per valid partition.

This is the readable reference for `optax_unf.nn.UNF`, which computes the same span from far fewer products. Zhou,
Finn & Harrison 2024 (arXiv:2402.05232), Section 3.
"""

import string
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from optax_unf.spec.axes import Name
from optax_unf.spec.leaf import LeafSpec
from optax_unf.spec.permutation_spec import PermutationSpec

Partition: TypeAlias = tuple[tuple[int, ...], ...]


class BasisTerm(NamedTuple):
    """One basis term: an equivariant linear map from leaf `source` to leaf `target`.

    Attributes:
      target: index of the output leaf in `spec.leaves`.
      source: index of the input leaf.
      partition: a valid partition of the output indices `0 .. a-1` and the input indices `a .. a+b-1`.
    """

    target: int
    source: int
    partition: Partition


def valid_partitions(target: Sequence[Name], source: Sequence[Name]) -> list[Partition]:
    """All partitions of output and input indices whose blocks hold only indices with the same name (Definition 1).

    Args:
      target: names of the output's axes.
      source: names of the input's axes.

    Returns:
      Their number is the product over names of the Bell number of how often the name occurs in both.

    Example:
      >>> valid_partitions(["n"], ["n"])
      [((0, 1),), ((0,), (1,))]
    """
    names = [*target, *source]

    def extend(index: int, blocks: Partition) -> Iterator[Partition]:
        if index == len(names):
            yield blocks
            return
        for k, block in enumerate(blocks):
            if names[block[0]] == names[index]:
                yield from extend(index + 1, (*blocks[:k], (*block, index), *blocks[k + 1 :]))
        yield from extend(index + 1, (*blocks, (index,)))

    return list(extend(0, ()))


def basis(spec: PermutationSpec) -> list[BasisTerm]:
    """The basis terms of all ordered pairs of leaves.

    Raises:
      ValueError: an axis is fixed or a `Concat`. Algorithm 1 is about permuted axes only.
    """
    return [
        BasisTerm(i, j, partition)
        for i, target in enumerate(spec.leaves)
        for j, source in enumerate(spec.leaves)
        for partition in valid_partitions(_names(target), _names(source))
    ]


def apply_term(
    term: BasisTerm, spec: PermutationSpec, x: Float[Array, "*source channels"]
) -> Float[Array, "*target channels"]:
    """The value of one basis term.

    Each block is a character. The input is indexed by the characters of its axes: repeated ones take a diagonal, and
    those that the output lacks are summed over. The output is indexed likewise: repeated characters make it zero off
    the diagonal, and those that the input lacks broadcast.
    """
    target, source = spec.leaves[term.target], spec.leaves[term.source]
    rank = len(target.factors)
    character = {index: string.ascii_letters[k] for k, block in enumerate(term.partition) for index in block}
    out = [character[index] for index in range(rank)]
    into = [character[rank + index] for index in range(len(source.factors))]
    x = x.reshape(*source.factored_shape, -1)
    both = sorted(set(out) & set(into))
    reduced = jnp.einsum(f"{''.join(into)}Z->{''.join(both)}Z", x)

    sizes = dict(zip(out, target.factored_shape, strict=True))
    distinct = sorted(sizes)
    reduced = reduced.reshape(*(sizes[c] if c in both else 1 for c in distinct), x.shape[-1])
    reduced = jnp.broadcast_to(reduced, (*(sizes[c] for c in distinct), x.shape[-1]))
    index = [jnp.arange(sizes[c]) for c in distinct]
    grid = dict(zip(distinct, jnp.meshgrid(*index, indexing="ij"), strict=True)) if distinct else {}
    y = jnp.zeros((*target.factored_shape, x.shape[-1]), x.dtype)
    y = y.at[tuple(grid[c] for c in out)].set(reduced) if out else reduced
    return y.reshape(*target.shape, -1)


def apply_basis(
    spec: PermutationSpec, coefficients: Sequence[Float[Array, "c_in c_out"]], features: PyTree[Float[Array, "..."]]
) -> PyTree[Float[Array, "..."]]:
    """The sum of all basis terms, each with a matrix on its channels (Eq. 30), evaluated one by one.

    Args:
      spec: the permutation spec.
      coefficients: one matrix per term of `basis(spec)`.
      features: leaves `[*shape, c_in]`.
    """
    xs = spec.flatten(features, "features")
    ys: list[Array | None] = [None] * len(xs)
    for term, matrix in zip(basis(spec), coefficients, strict=True):
        y = apply_term(term, spec, xs[term.source]) @ matrix
        total = ys[term.target]
        ys[term.target] = y if total is None else total + y
    return spec.unflatten(ys, like=features)


def _names(leaf: LeafSpec) -> list[Name]:
    if len(leaf.parts) > 1:
        raise ValueError(
            f"Algorithm 1 is about leaves in one part, but leaf {leaf.path!r} with axes {leaf.axes} has "
            f"{len(leaf.parts)}. Make each part a leaf of its own."
        )
    names = [name for name, _ in leaf.factors if name is not None]
    if len(names) != len(leaf.factors):
        raise ValueError(
            f"Algorithm 1 needs a name for every axis, but leaf {leaf.path!r} has axes {leaf.axes}. Name them."
        )
    return names
