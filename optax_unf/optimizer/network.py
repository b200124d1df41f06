"""f of Eq. 31: hidden layers and an equivariant head, on small leaves whole and on large ones tile by tile."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from optax_unf.equivariant.contract import Tensor, contractions, tensors
from optax_unf.equivariant.deep_sets import deep_sets, with_shared
from optax_unf.equivariant.mix import Contracted, Multiplied, full_rows, tied_rows
from optax_unf.equivariant.nfn import feed_forward, nfn_plan
from optax_unf.equivariant.plan import Plan, deep_sets_plan, draw, full_plan, tied_plan
from optax_unf.equivariant.unf import contractions_of, equivariant
from optax_unf.optimizer.architecture import Architecture
from optax_unf.optimizer.features import ENTRY_CHANNELS, TIME_CHANNELS, mean_squares, normalize, pack, scaled, unpack
from optax_unf.optimizer.mixture import FACTS, OUTPUTS
from optax_unf.optimizer.stream import stream
from optax_unf.optimizer.theta import Layer
from optax_unf.spec.leaf import LeafSpec, split_parts
from optax_unf.spec.permutation_spec import PermutationSpec

# Leaves of at most this many entries go through the trunk together; others alone, which leaves their shardings alone.
_SMALL_ENTRIES = 2**13

# The features of a tile of this size stay in a CPU's cache, and its products are large enough to share among cores.
_CPU_ENTRIES = 2**14
# An accelerator wants large products, but leaves of one tile are evaluated whole: of 2**21 entries, half of GPT-2's
# matrices were, in 7 GB.
_ACCELERATOR_ENTRIES = 2**18

Channels: TypeAlias = Sequence[Float[Array, "..."]]
"""The input channels of one leaf, each of its shape: weight, gradient, momenta."""


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How large leaves are evaluated.

    Attributes:
      entries: about how many entries of a large leaf to evaluate at a time; 0 for whole leaves.
    """

    entries: int = 0


def tiling_for(platform: str, devices: int) -> Tiling:
    """The tiling that is best on so many devices of a platform.

    Whole leaves if there are several: they may be parted between them, and a tile would gather them.
    """
    if devices > 1:
        return Tiling()
    return Tiling(_CPU_ENTRIES if platform == "cpu" else _ACCELERATOR_ENTRIES)


@dataclasses.dataclass(frozen=True)
class Network:
    """f of Eq. 31 on a weight space: all that is known of it before any numbers are.

    Attributes:
      architecture: the layers.
      spec: the weight space.
      tiling: how large leaves are evaluated.
    """

    architecture: Architecture
    spec: PermutationSpec
    tiling: Tiling = Tiling()

    @property
    def plans(self) -> tuple[Plan, ...]:
        """The parameters of each layer."""
        chosen, width = self.architecture, self.architecture.hidden_channels
        if chosen.head == "mixture":
            return tuple(
                deep_sets_plan(inputs, outputs, pool=False, use_bias=True)
                for inputs, outputs in ((FACTS, width), (width, OUTPUTS))
            )
        if not self.spec.leaves:
            return ()
        first = deep_sets_plan(ENTRY_CHANNELS, width, shared=TIME_CHANNELS, pool=chosen.pool, use_bias=True)
        hidden = deep_sets_plan(width, width, pool=chosen.pool, use_bias=True)
        others = [
            self._plan_of_head(width) if number in chosen.equivariant_layers else hidden
            for number in range(1, chosen.hidden_layers)
        ]
        return first, *others, self._plan_of_head(1)

    def _plan_of_head(self, outputs: int) -> Plan:
        """The parameters of a layer of the head's kind."""
        width = self.architecture.hidden_channels
        match self.architecture.head, self.architecture.coefficients:
            case "deepsets", _:
                return deep_sets_plan(width, outputs, pool=self.architecture.pool, use_bias=True)
            case "nfn", _:
                return nfn_plan(self.spec, width, outputs)
            case _, "tied":
                return tied_plan(tensors(self.spec, fixed_as_permuted=True), width, outputs)
            case _:
                return full_plan(tensors(self.spec), width, outputs)

    def init(self, key: Array) -> tuple[Layer, ...]:
        """The parameters before any meta-training."""
        keys = jax.random.split(key, max(len(self.plans), 1))
        return tuple(draw(plan, keys[layer]) for layer, plan in enumerate(self.plans))

    def __call__(
        self,
        layers: Sequence[Layer],
        channels: Sequence[Channels],
        known: Float[Array, " gradients"] | None,
        time: Float[Array, " time_channels"],
        dtype: jnp.dtype,
    ) -> list[Float[Array, "..."]]:
        """The value of f on every leaf.

        Args:
          layers: the parameters.
          channels: of every leaf, not yet normalized.
          known: mean squares to divide gradients and momenta by; `None` for what they are in the leaf.
          time: the encoding of the iteration number.
          dtype: to compute in.
        """
        first, *others, head = layers
        trunk = [with_shared(first, time), *others]
        tiled = [self._is_tiled(leaf) for leaf in self.spec.leaves]
        whole = [normalize(jnp.stack([x.astype(dtype) for x in xs]), known) for xs in _where(channels, tiled, False)]
        features = iter(self._hidden(trunk, whole))
        leaves = [
            _Tiled(trunk, xs, mean_squares(xs, known, dtype), self.tiling, dtype) if is_tiled else next(features)
            for xs, is_tiled in zip(channels, tiled, strict=True)
        ]

        if self.architecture.head == "deepsets":
            return [x.through(head) if isinstance(x, _Tiled) else deep_sets(head, x)[0] for x in leaves]
        return [y[0] for y in self._equivariant(head, leaves, 1)]

    def _hidden(self, layers: Sequence[Layer], xs: list[Array]) -> list[Float[Array, "features ..."]]:
        """The hidden layers on whole leaves."""
        chosen, width = self.architecture.equivariant_layers, self.architecture.hidden_channels
        for is_equivariant, run in itertools.groupby(range(len(layers)), chosen.__contains__):
            if is_equivariant:
                for number in run:
                    xs = [jax.nn.relu(y) for y in self._equivariant(layers[number], xs, width)]
            else:
                xs = _features([layers[number] for number in run], xs)
        return xs

    def _equivariant(
        self, layer: Layer, xs: "Sequence[Array | _Tiled]", outputs: int
    ) -> list[Float[Array, "outputs ..."]]:
        """A layer that sees all leaves."""
        if self.architecture.head == "nfn":
            return feed_forward(layer, self.spec, xs, outputs)  # type: ignore[arg-type] (no leaf is tiled)
        contracted = _contracted(self.architecture, self.spec, layer, xs)
        return equivariant(layer, self.spec, self.architecture.coefficients, contracted, outputs)

    def _is_tiled(self, leaf: LeafSpec) -> bool:
        """Whether a leaf is evaluated in tiles. Those with diagonals or fixed positions are needed whole."""
        entries, chosen = self.tiling.entries, self.architecture
        if not entries or math.prod(leaf.shape) <= entries or chosen.pool or chosen.equivariant_layers:
            return False
        if chosen.head != "unf":
            return chosen.head == "deepsets"
        for part in leaf.parts:
            names = [name for name, _ in part.factors if name is not None]
            fixed = len(part.factors) - len(names)
            if len(set(names)) < len(names) or (fixed and chosen.coefficients == "full") or 0 in part.shape:
                return False
        return True


def _where(xs: Sequence[Channels], chosen: Sequence[bool], value: bool) -> list[Channels]:
    return [x for x, is_chosen in zip(xs, chosen, strict=True) if is_chosen == value]


def _trunk(layers: Sequence[Layer], x: Float[Array, "i *axes"]) -> Float[Array, "features *axes"]:
    for params in layers:
        x = jax.nn.relu(deep_sets(params, x))
    return x


def _features(layers: Sequence[Layer], xs: Sequence[Float[Array, "i ..."]]) -> list[Float[Array, "features ..."]]:
    """The trunk on whole leaves. A pointwise one does not see leaves: small ones together are one matrix."""
    pointwise = all("pooled" not in params for params in layers)
    small = [pointwise and math.prod(x.shape[1:]) <= _SMALL_ENTRIES for x in xs]
    packed = [x for x, is_small in zip(xs, small, strict=True) if is_small]
    together = iter(unpack(_trunk(layers, pack(packed)), [x.shape[1:] for x in packed]) if packed else [])
    return [next(together) if is_small else _trunk(layers, x) for x, is_small in zip(xs, small, strict=True)]


def _contracted(
    architecture: Architecture,
    spec: PermutationSpec,
    head: Layer,
    leaves: Sequence["Array | _Tiled"],
) -> list[Contracted]:
    """The contractions of the parts of all leaves, in the order of `tensors`."""
    tied = architecture.coefficients == "tied"
    parts = tensors(spec, fixed_as_permuted=tied)

    def rows(number: int, k: int) -> Float[Array, "features outputs"]:
        if tied:
            return tied_rows(head, parts, (number, k))
        return full_rows(head, parts, architecture.hidden_channels, (number, k))

    contracted: list[Contracted] = []
    for leaf, x in zip(spec.leaves, leaves, strict=True):
        if isinstance(x, _Tiled):
            for part in leaf.parts:
                number = len(contracted)
                kernels = {k: rows(number, k) for k in _multiplied(parts[number], architecture.hidden_channels)}
                contracted.append(x.contractions(leaf, part.start, part.extent, parts[number], kernels))
        else:
            for part in split_parts(x, leaf, leading=1):
                contracted.append(contractions_of(part, parts[len(contracted)]))
    return contracted


def _multiplied(part: Tensor, features: int) -> list[int]:
    """The contractions to multiply before they are averaged: those whose features take more memory than the part."""
    kept = [math.prod(part.sizes[axis] for axis in c.kept) for c, _ in contractions(part.names)]
    return [k for k, size in enumerate(kept[:-1]) if k == 0 or features * size > kept[0]]


@dataclasses.dataclass(frozen=True)
class _Tiled:
    """A large leaf, whose features are never all at hand.

    Attributes:
      layers: the trunk.
      channels: the leaf's input channels.
      squares: their mean squares.
      tiling: how to cut it.
      dtype: to compute in.
    """

    layers: Sequence[Layer]
    channels: Channels
    squares: Float[Array, "channels 1"]
    tiling: Tiling
    dtype: jnp.dtype

    def contractions(
        self,
        leaf: LeafSpec,
        start: tuple[int, ...],
        extent: tuple[int, ...],
        part: Tensor,
        kernels: Mapping[int, Array],
    ) -> Contracted:
        """The contractions of one part of the leaf, of which some are multiplied already."""
        inputs = [x.reshape(leaf.factored_shape) for x in self.channels]
        found = self._stream(inputs, start, extent, part, kernels)
        return [Multiplied(x) if k in kernels else x for k, x in enumerate(found)]

    def through(self, head: Layer) -> Float[Array, "*shape"]:
        """The leaf through a pointwise head."""
        shape, size = self.channels[0].shape, self.channels[0].size
        entries = Tensor("", (0,), (size,), (size,), (True,))
        inputs = [x.reshape(-1) for x in self.channels]
        y, _ = self._stream(inputs, (0,), (size,), entries, {0: head["kernel"]})
        return y[0].reshape(shape) + head["bias"][0].astype(self.dtype)

    def _stream(
        self,
        inputs: Channels,
        start: tuple[int, ...],
        extent: tuple[int, ...],
        part: Tensor,
        kernels: Mapping[int, Array],
    ) -> list[Array]:
        trunk = jax.tree_util.Partial(_scaled_trunk, self.layers, self.squares)
        kernels = {k: kernel.astype(self.dtype) for k, kernel in kernels.items()}
        return _jitted_stream(list(inputs), start, trunk, kernels, _anonymous(part), extent, self.tiling.entries)


# Leaves that differ in their names alone are traced once.
_jitted_stream = jax.jit(stream, static_argnames=("leaf", "extent", "entries"))


def _anonymous(part: Tensor) -> Tensor:
    ranks = sorted(set(part.names))
    return dataclasses.replace(part, path="", names=tuple(map(ranks.index, part.names)))


def _scaled_trunk(
    layers: Sequence[Layer], squares: Float[Array, "channels 1"], x: Float[Array, "channels entries"]
) -> Float[Array, "features entries"]:
    return _trunk(layers, scaled(x, squares))
