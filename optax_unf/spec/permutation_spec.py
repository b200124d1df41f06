"""Permutation specs: which permutation acts on which axis of which leaf of a weight space."""

import dataclasses
import functools
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Int, PyTree

from optax_unf._sharding import propagated
from optax_unf.spec.axes import Name
from optax_unf.spec.leaf import LeafSpec, join_parts, split_parts
from optax_unf.spec.paths import leaves_by_path, show_path
from optax_unf.spec.table import table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Permutation: TypeAlias = Mapping[Name, Int[ArrayLike, "_"]]


@dataclasses.dataclass(frozen=True)
class PermutationSpec:
    """For each axis of each leaf, the name of the permutation that acts on it.

    Axes with the same name permute together (Zhou, Finn & Harrison 2024, arXiv:2402.05232, Section 2).
    Immutable and hashable; made by `make_spec`. `print(spec)` shows it as a table.

    Attributes:
      leaves: one `LeafSpec` per leaf, sorted by path, so that the order does not depend on the container.
      io: names that touch the data or the outputs: permuting them leaves a network as it is only if those permute
        along. Known for specs that `infer_spec` made with `io="permute"`, as the next two for their modes.
      noise: names of axes along which random numbers are drawn: they leave a network as it is in distribution, not for
        one key.
      spatial: names of spatial axes of kernels.
      notes: what `infer_spec` found: `(path, why an axis is fixed, or that the leaf is not used)`. Nothing but `leaves`
        makes specs different.
    """

    leaves: tuple[LeafSpec, ...]
    io: tuple[Name, ...] = dataclasses.field(default=(), compare=False)
    noise: tuple[Name, ...] = dataclasses.field(default=(), compare=False)
    spatial: tuple[Name, ...] = dataclasses.field(default=(), compare=False)
    notes: tuple[tuple[str, str], ...] = dataclasses.field(default=(), compare=False)

    @property
    def sizes(self) -> dict[Name, int]:
        """The size of every name, in the order of first occurrence."""
        return {name: size for leaf in self.leaves for name, size in leaf.factors if name is not None}

    @functools.cached_property
    def paths(self) -> tuple[str, ...]:
        """The path of every leaf."""
        return tuple(leaf.path for leaf in self.leaves)

    def flatten(self, tree: PyTree, what: str = "tree") -> list[Any]:
        """The leaves of `tree` in the order of the spec.

        Raises:
          ValueError: the tree has other leaves than the spec. `what` names the tree in the message.
        """
        found = leaves_by_path(tree)
        _check_paths(self.paths, found, what)
        return [found[path] for path in self.paths]

    def unflatten(self, leaves: Sequence[Any], like: PyTree) -> PyTree:
        """The inverse of `flatten`: a tree with the structure of `like`."""
        by_path = dict(zip(self.paths, leaves, strict=True))
        found = leaves_by_path(like)
        _check_paths(self.paths, found, "tree")
        return jax.tree.unflatten(jax.tree.structure(like), [by_path[path] for path in found])

    def random_permutation(self, key: Array) -> Permutation:
        """A uniformly random element of the group: an index array per name.

        Args:
          key: a PRNG key.
        """
        keys = jax.random.split(key, max(len(self.sizes), 1))
        # jax cannot sort the keys of a plain dict where strings and integers are mixed.
        return OrderedDict(
            (name, jax.random.permutation(k, size)) for k, (name, size) in zip(keys, self.sizes.items(), strict=False)
        )

    def invert(self, permutation: Permutation) -> Permutation:
        """The inverse element of the group: what `permute` did with `permutation`, it undoes with this."""
        _check_permutation(self.sizes, permutation)
        return OrderedDict((name, jnp.argsort(permutation[name])) for name in self.sizes)

    def permute(self, permutation: Permutation, tree: PyTree) -> PyTree:
        """The group's action: reorders every named axis of every leaf, or of every part of a leaf with `Concat` axes.

        Args:
          permutation: an index array per name, as `random_permutation` returns.
          tree: leaves of shape `[*shape]` or, for features, `[*shape, channels]`.

        Returns:
          A tree of the same structure, `out[..., i, ...] = leaf[..., permutation[name][i], ...]`.

        Raises:
          TypeError: the permutation is no mapping, or the two arguments are swapped.
          ValueError: the tree or the permutation does not fit the spec.

        Example:
          >>> import jax, jax.numpy as jnp
          >>> from optax_unf import make_spec
          >>> params = {"w": jnp.arange(6.0).reshape(3, 2)}
          >>> spec = make_spec({"w": ("out", "in")}, params)
          >>> g = spec.random_permutation(jax.random.key(0))
          >>> there_and_back = spec.permute(spec.invert(g), spec.permute(g, params))
          >>> bool((there_and_back["w"] == params["w"]).all())
          True
        """
        if not isinstance(permutation, Mapping) or (
            not set(self.sizes) <= set(permutation) and isinstance(tree, Mapping) and set(self.sizes) <= set(tree)
        ):
            raise TypeError(
                "permute takes first the permutation, a mapping from names to indices, and then the tree, but was "
                "given them the other way round, or something else. Write spec.permute(permutation, tree)."
            )
        _check_permutation(self.sizes, permutation)
        leaves = self.flatten(tree)
        for leaf, x in zip(self.leaves, leaves, strict=True):
            shape = jnp.shape(x)
            if shape[: len(leaf.shape)] != leaf.shape:
                raise ValueError(
                    f"Leaf {show_path(leaf.path)} must have a shape that starts with {leaf.shape}, as in the "
                    f"spec, but has {shape}."
                )
        (permuted,) = propagated(self._permuted)(leaves, permutation=permutation)
        return self.unflatten(permuted, like=tree)

    def _permuted(self, leaves: list[ArrayLike], permutation: Permutation) -> tuple[list[Array]]:
        permuted = []
        for leaf, x in zip(self.leaves, leaves, strict=True):
            parts = split_parts(x, leaf)
            for k, part in enumerate(leaf.parts):
                for axis, (name, _) in enumerate(part.factors):
                    if name is not None:
                        parts[k] = jnp.take(parts[k], permutation[name], axis=axis)
            permuted.append(join_parts(parts, leaf))
        return (permuted,)

    def __str__(self) -> str:
        return table(self)

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draws the spec; see `optax_unf.spec.plot.plot_spec`. Needs matplotlib."""
        from optax_unf.spec.plot import plot_spec

        return plot_spec(self, ax)


def _check_paths(expected: tuple[str, ...], found: Mapping[str, Any], what: str) -> None:
    # The spec has been compared with the parameters before with other trees.
    of_spec = what in ("tree", "parameters")
    alike = f"Give {what} that are a tree like the parameters."
    for path in expected:
        if path not in found:
            raise ValueError(
                f"The {what} must have the leaves of the permutation spec, but lacks {show_path(path)}. It has "
                f"{', '.join(map(show_path, found)) or 'no leaves'}. "
                f"{'Make the spec from these parameters with make_spec(tree, params).' if of_spec else alike}"
            )
    unknown = set(found).difference(expected)
    for path in found:
        if path in unknown:
            raise ValueError(
                f"The permutation spec has no entry for the leaf {show_path(path)} of the {what}. "
                f"{'Add it to the tree that make_spec is given.' if of_spec else alike}"
            )


def _check_permutation(sizes: Mapping[Name, int], permutation: Permutation) -> None:
    for name, size in sizes.items():
        found = jnp.shape(permutation[name]) if name in permutation else "none"
        if found != (size,):
            raise ValueError(
                f"The permutation must have an index array of shape ({size},) for the name {name!r}, but has {found}. "
                f"Draw it with the random_permutation of this spec."
            )
        if not isinstance(permutation[name], Tracer):
            indices = np.asarray(permutation[name])
            if not np.issubdtype(indices.dtype, np.integer) or not np.array_equal(np.sort(indices), np.arange(size)):
                raise ValueError(
                    f"The index array for the name {name!r} must hold each of 0 to {size - 1} once, but is "
                    f"{np.array2string(indices, threshold=20)}."
                )
