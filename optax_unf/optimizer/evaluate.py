"""The value of f on all leaves: small ones whole, large ones in blocks of entries."""

import dataclasses
import functools
import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from optax_unf.nn import DeepSets
from optax_unf.nn.contract import Tensor, channels_to_positions, contract, contractions, positions_to_channels, tensors
from optax_unf.nn.layout import ChannelAxis, from_blocks
from optax_unf.nn.meetings import meeting_of
from optax_unf.nn.mix import Arrived, Contracted, full_rows, mix_full, mix_tied, tied_rows, widths
from optax_unf.optimizer.features import ENTRY_CHANNELS, mean_squares, normalize, pack, scaled, unpack
from optax_unf.optimizer.network import SMALL_ENTRIES, OptimizerConfig, UpdateNetwork
from optax_unf.optimizer.stream import stream
from optax_unf.spec.leaf import split_blocks
from optax_unf.spec.permutation_spec import LeafSpec, PermutationSpec

# The features of a block of this size stay in a CPU's cache, and its products are large enough to share among cores.
_CPU_ENTRIES = 2**14
# An accelerator wants large products, but leaves of one block are evaluated whole: of 2**21 entries, half of GPT-2's
# matrices were, in 7 GB.
_ACCELERATOR_ENTRIES = 2**18

Channels = Sequence[Float[Array, "*shape"]]
"""The input channels of one leaf: weight, gradient, momenta."""


def evaluate(
    config: OptimizerConfig,
    spec: PermutationSpec,
    params: dict[str, Any],
    channels: Sequence[Channels],
    known: Float[Array, " gradients"] | None,
    step: Float[Array, " time_channels"],
    block_entries: int,
    dtype: jnp.dtype,
) -> list[Float[Array, "*shape"]]:
    """The value of f on every leaf.

    Args:
      config: the architecture.
      spec: the weight space.
      params: parameters of `UpdateNetwork`.
      channels: of every leaf, not yet normalized.
      known: mean squares to divide gradients and momenta by; `None` for what they are in the leaf.
      step: the encoding of the iteration number.
      block_entries: how many entries of a large leaf to evaluate at a time; 0 for whole leaves.
      dtype: to compute in.
    """
    squares = {
        n: mean_squares(channels[n], known, dtype)
        for n, leaf in enumerate(spec.leaves)
        if _goes_in_blocks(leaf, config, block_entries)
    }
    if squares:
        return _InBlocks(config, spec, params, known, step, block_entries, dtype).evaluate(channels, squares)
    features = _normalized(dict(enumerate(channels)), known, dtype)
    features = [features[n] for n in range(len(channels))]
    return UpdateNetwork(config, spec).apply({"params": params}, features, step)  # type: ignore[return-value]


def default_block_entries() -> int:
    """How many entries of a large leaf are evaluated at a time unless told otherwise.

    0, for whole leaves, if there are several devices: the leaves may be parted between them, and a block would gather
    them.
    """
    devices = jax.devices()
    if len(devices) > 1:
        return 0
    return _CPU_ENTRIES if devices[0].platform == "cpu" else _ACCELERATOR_ENTRIES


def _channel_axis() -> ChannelAxis:
    """Where the features of a block have their channels.

    A CPU's library multiplies tall matrices `[entries, channels]` faster; accelerators want long rows.
    """
    return -1 if jax.devices()[0].platform == "cpu" else 0


def _goes_in_blocks(leaf: LeafSpec, config: OptimizerConfig, block_entries: int) -> bool:
    """Whether a leaf is evaluated in blocks.

    Those of one block go side by side with other small ones; those with diagonals or fixed positions are needed whole.
    """
    if not block_entries or math.prod(leaf.shape) <= block_entries or config.pool:
        return False
    if config.head != "unf":
        return config.head == "deepsets"
    for block in leaf.blocks:
        names = [name for name, _ in block.factors if name is not None]
        fixed = len(block.factors) - len(names)
        if len(set(names)) < len(names) or (fixed and config.coefficients == "full") or 0 in block.shape:
            return False
    return True


@dataclasses.dataclass(frozen=True)
class _InBlocks:
    """f with its large leaves in blocks.

    It has the parameters of `UpdateNetwork`, but is no flax module: those cannot be used inside a loop.
    """

    config: OptimizerConfig
    spec: PermutationSpec
    params: dict[str, Any]
    known: Float[Array, " gradients"] | None
    step: Float[Array, " time_channels"]
    block_entries: int
    dtype: jnp.dtype

    def evaluate(
        self, channels: Sequence[Channels], squares: Mapping[int, Float[Array, "channels 1"]]
    ) -> list[Float[Array, "*shape"]]:
        small = {n: xs for n, xs in enumerate(channels) if n not in squares}
        small = _normalized(small, self.known, self.dtype)
        features = dict(zip(small, self._through_trunk(list(small.values())), strict=True))
        return (self._deep_sets if self.config.head == "deepsets" else self._unf)(channels, squares, features)

    @functools.cached_property
    def _layers(self) -> list[dict[str, Array]]:
        """The layers of the trunk, the first one with its part of the iteration number as a bias."""
        first, *others = (self.params[f"trunk_{layer}"] for layer in range(self.config.hidden_layers))
        entry, shared = jnp.split(first["kernel"], [ENTRY_CHANNELS])
        return [{"kernel": entry, "bias": self.step @ shared + first["bias"]}, *others]

    def _through_trunk(self, xs: list[Array]) -> list[Float[Array, "features *shape"]]:
        """Small leaves go together, as one matrix."""
        if not xs:
            return []
        return unpack(_trunk(self._layers, pack(xs)), [x.shape[1:] for x in xs])

    def _stream(
        self,
        inputs: Channels,
        start: tuple[int, ...],
        extent: tuple[int, ...],
        squares: Float[Array, "channels 1"],
        tensor: Tensor,
        kernels: Mapping[int, Array],
    ) -> list[Array]:
        axis = _channel_axis()
        trunk = jax.tree_util.Partial(_scaled_trunk if axis == 0 else _tall_trunk, self._layers, squares)
        kernels = {k: kernel.astype(self.dtype) for k, kernel in kernels.items()}
        return _jitted_stream(list(inputs), start, trunk, kernels, _anonymous(tensor), extent, self.block_entries, axis)

    def _deep_sets(
        self, channels: Sequence[Channels], squares: Mapping[int, Array], features: Mapping[int, Array]
    ) -> list[Float[Array, "*shape"]]:
        head, outputs = self.params["head"], []
        for n, leaf in enumerate(self.spec.leaves):
            if n in squares:
                size = math.prod(leaf.shape)
                entries = Tensor(leaf.path, (0,), (size,), (size,), (True,))
                inputs = [x.reshape(-1) for x in channels[n]]
                y, _ = self._stream(inputs, (0,), (size,), squares[n], entries, {0: head["kernel"]})
                outputs.append(y[0].reshape(leaf.shape) + head["bias"][0].astype(self.dtype))
            else:
                layer = DeepSets(1, pool=False, channel_axis=0)
                outputs.append(layer.apply({"params": head}, features[n])[0])  # type: ignore[index]
        return outputs

    def _unf(
        self, channels: Sequence[Channels], squares: Mapping[int, Array], features: Mapping[int, Array]
    ) -> list[Float[Array, "*shape"]]:
        head, tied = self.params["head"], self.config.coefficients == "tied"
        leaves = tensors(self.spec, fixed_as_permuted=tied)
        heights = [self.config.hidden_channels * leaf.positions for leaf in leaves]

        def matrix(name: str, std: np.ndarray) -> Array:
            return head[name] if name in head else jnp.zeros(std.shape)

        contracted: list[Contracted] = []
        for n, leaf in enumerate(self.spec.leaves):
            if n not in squares:
                for block in split_blocks(features[n], leaf, leading=1):
                    tensor = leaves[len(contracted)]
                    contracted.append(contract(positions_to_channels(block, tensor), tensor.names))
                continue
            inputs = [x.reshape(leaf.factored_shape) for x in channels[n]]
            for block in leaf.blocks:
                number = len(contracted)
                rows = {
                    k: (tied_rows if tied else full_rows)(matrix, leaves, heights, (number, k), 1)
                    for k in self._multiplied(leaves, number)
                }
                means = self._stream(inputs, block.start, block.extent, squares[n], leaves[number], rows)
                contracted.append([Arrived(x) if k in rows else x for k, x in enumerate(means)])
        terms = (mix_tied if tied else mix_full)(matrix, leaves, contracted, 1, use_bias=True)
        outputs = [functools.reduce(operator.add, arrived) for arrived in terms]
        blocks = [channels_to_positions(y, leaf, 1) for y, leaf in zip(outputs, leaves, strict=True)]
        return [y[0] for y in from_blocks(blocks, self.spec)]

    def _multiplied(self, leaves: tuple[Tensor, ...], leaf: int) -> list[int]:
        """The contractions of a large leaf that are multiplied before they are averaged.

        Others are averages of features, or averages of such averages: those of which the head makes many channels.
        """
        sizes, names = leaves[leaf].sizes, leaves[leaf].names
        kept = [frozenset(contraction.kept) for contraction, _ in contractions(names)]
        # The first is the leaf itself; the last, its mean, is a mean of any other.
        made = {k: sum(widths(meeting_of(leaves, (leaf, k)), leaves, 1)) for k in range(1, len(kept) - 1)}
        entries = {k: self.config.hidden_channels * math.prod(sizes[axis] for axis in kept[k]) for k in made}
        # What takes more memory than the leaf is not held, but one is, for the mean.
        small = [k for k in made if entries[k] <= math.prod(sizes)] or sorted(made, key=entries.__getitem__)[:1]
        worth = 0.0
        while small:
            given = {k: sum(n for j, n in made.items() if kept[j] <= kept[k]) for k in small}
            best = max(small, key=lambda k: (given[k], -entries[k]))
            if given[best] < worth:
                break
            made = {j: n for j, n in made.items() if not kept[j] <= kept[best]}
            small = [k for k in small if k in made]
            worth = self.config.hidden_channels / 6  # so many products take as long as a sum of all features
        return [0, *made]


# Leaves that differ in their names alone are traced once.
_jitted_stream = jax.jit(stream, static_argnames=("leaf", "extent", "entries", "channel_axis"))


def _anonymous(tensor: Tensor) -> Tensor:
    ranks = sorted(set(tensor.names))
    return dataclasses.replace(tensor, path="", names=tuple(map(ranks.index, tensor.names)))


def _scaled_trunk(
    layers: Sequence[dict[str, Array]], squares: Float[Array, "channels 1"], x: Float[Array, "channels entries"]
) -> Float[Array, "features entries"]:
    return _trunk(layers, scaled(x, squares))


def _tall_trunk(
    layers: Sequence[dict[str, Array]], squares: Float[Array, "channels 1"], x: Float[Array, "channels entries"]
) -> Float[Array, "entries features"]:
    # Without the barrier, the transposition becomes a part of the product, in a slower way.
    return _trunk(layers, jax.lax.optimization_barrier(scaled(x, squares).T), channel_axis=-1)


def _relu_in_vectors(x: Float[Array, "entries features"]) -> Float[Array, "entries features"]:
    """A ReLU with a bound.

    Without one, a CPU's compiler writes out the code of all 32 channels, one number at a time, which takes six times as
    long. With it that would be too much code, and the channels stay a loop, which is made of vectors.
    """
    return jax.lax.clamp(jnp.zeros((), x.dtype), x, jnp.array(jnp.finfo(x.dtype).max, x.dtype))


def _trunk(layers: Sequence[dict[str, Array]], x: Float[Array, "..."], channel_axis: ChannelAxis = 0) -> Array:
    relu = jax.nn.relu if channel_axis == 0 else _relu_in_vectors
    for params in layers:
        dense = DeepSets(params["kernel"].shape[1], pool=False, channel_axis=channel_axis)
        x = jax.tree.map(relu, dense.apply({"params": params}, x))
    return x


def _normalized(
    channels: Mapping[int, Channels], known: Float[Array, " gradients"] | None, dtype: jnp.dtype
) -> dict[int, Float[Array, "channels *shape"]]:
    """The channels of leaves, normalized. Small leaves of one shape go together, and come as neighbours."""
    alike: dict[tuple[int, ...], list[int]] = {}
    for n, xs in channels.items():
        alike.setdefault(xs[0].shape, []).append(n)
    done = {}
    for shape, numbers in alike.items():
        size = math.prod(shape)
        if len(numbers) == 1 or size > SMALL_ENTRIES:
            for n in numbers:
                done[n] = normalize(jnp.stack([x.astype(dtype) for x in channels[n]]), known)
            continue
        rows = [x.astype(dtype).reshape(-1) for xs in zip(*(channels[n] for n in numbers), strict=True) for x in xs]
        x = jnp.concatenate(rows).reshape(len(channels[numbers[0]]), len(numbers), size)
        x = jax.vmap(normalize, (1, None), 1)(x, known).reshape(len(x), -1)
        # Not `apart`: the compiler sees that neighbours of a split that are packed again are one array.
        parts = jax.lax.split(x, [size] * len(numbers), axis=1)
        done |= {n: part.reshape(len(x), *shape) for n, part in zip(numbers, parts, strict=True)}
    return done
