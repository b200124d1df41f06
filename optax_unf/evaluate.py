"""The value of f on all leaves: small ones whole, large ones in blocks of entries."""

import dataclasses
import functools
import math
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from optax_unf.contract import Tensor, channels_to_positions, contract, positions_to_channels, tensors
from optax_unf.features import normalize, pack, scaled, unpack
from optax_unf.leaf import split_blocks
from optax_unf.network import OptimizerConfig, UpdateNetwork
from optax_unf.nn import DeepSets
from optax_unf.nn.layout import from_blocks
from optax_unf.nn.mix import Arrived, Contracted, mix_full, mix_tied, whole_full, whole_tied
from optax_unf.spec import LeafSpec, PermutationSpec
from optax_unf.stream import mean_squares, stream

# The products of a block of this size run at the full rate of a CPU core, and its features stay in the cache.
_CPU_ENTRIES = 1536
# An accelerator wants large products; its memory is the limit.
_ACCELERATOR_ENTRIES = 2**20
# Smaller leaves are evaluated whole, side by side with other small ones.
_SMALL_BLOCKS = 8

Channels = Sequence[Float[Array, "*shape"]]
"""The input channels of one leaf: weight, gradient, momenta."""


def evaluate(
    config: OptimizerConfig,
    spec: PermutationSpec,
    params: dict[str, Any],
    channels: Sequence[Channels],
    step: Float[Array, " time_channels"],
    block_entries: int | None = None,
) -> list[Float[Array, "*shape"]]:
    """The value of f on every leaf.

    Args:
      config: the architecture.
      spec: the weight space.
      params: parameters of `UpdateNetwork`.
      channels: of every leaf, not yet normalized.
      step: the encoding of the iteration number.
      block_entries: how many entries of a large leaf to evaluate at a time; 0 for whole leaves. By default chosen for
        the device, or 0 if there are several: the leaves may be parted between them, and a block would gather them.
    """
    if block_entries is None:
        block_entries = default_block_entries()
    large = [n for n, leaf in enumerate(spec.leaves) if _is_large(leaf, config, block_entries)]
    if large:
        return _InBlocks(config, spec, params, step, block_entries, frozenset(large)).evaluate(channels)
    features = [normalize(jnp.stack(xs)) for xs in channels]
    return UpdateNetwork(config, spec).apply({"params": params}, features, step)  # type: ignore[return-value]


def default_block_entries() -> int:
    """How many entries of a large leaf are evaluated at a time unless told otherwise."""
    devices = jax.devices()
    if len(devices) > 1:
        return 0
    return _CPU_ENTRIES if devices[0].platform == "cpu" else _ACCELERATOR_ENTRIES


def _is_large(leaf: LeafSpec, config: OptimizerConfig, block_entries: int) -> bool:
    """Whether a leaf goes in blocks: diagonals and fixed positions need all of it."""
    if not block_entries or math.prod(leaf.shape) <= _SMALL_BLOCKS * block_entries or config.pool:
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
    step: Float[Array, " time_channels"]
    block_entries: int
    large: frozenset[int]

    def evaluate(self, channels: Sequence[Channels]) -> list[Float[Array, "*shape"]]:
        small = {n: normalize(jnp.stack(xs)) for n, xs in enumerate(channels) if n not in self.large}
        features = dict(zip(small, self._through_trunk(list(small.values())), strict=True))
        if self.config.head == "deepsets":
            return [self._deep_sets(n, channels[n], features.get(n)) for n in range(len(channels))]
        return self._unf(channels, features)

    def _trunk(self, x: Float[Array, "channels *shape"]) -> Float[Array, "features *shape"]:
        for layer in range(self.config.hidden_layers):
            dense = DeepSets(self.config.hidden_channels, pool=False, channel_axis=0)
            variables = {"params": self.params[f"trunk_{layer}"]}
            x = jax.nn.relu(dense.apply(variables, x, shared=self.step if layer == 0 else None))  # type: ignore[arg-type]
        return x

    def _through_trunk(self, xs: list[Array]) -> list[Float[Array, "features *shape"]]:
        """Small leaves go together, as one matrix."""
        if not xs:
            return []
        return unpack(self._trunk(pack(xs)), [x.shape[1:] for x in xs])

    def _stream(
        self, inputs: Channels, squares: Float[Array, "channels 1"], tensor: Tensor, whole: Array
    ) -> tuple[Array, list[Array]]:
        return stream(inputs, lambda x: self._trunk(scaled(x, squares)), whole, tensor, self.block_entries)

    def _deep_sets(self, n: int, channels: Channels, features: Array | None) -> Float[Array, "*shape"]:
        head = self.params["head"]
        if features is not None:
            return DeepSets(1, pool=False, channel_axis=0).apply({"params": head}, features)[0]  # type: ignore[index]
        leaf = self.spec.leaves[n]
        entries = Tensor(leaf.path, (0,), (math.prod(leaf.shape),), (math.prod(leaf.shape),), (True,))
        flat = [x.reshape(-1) for x in channels]
        products, _ = self._stream(flat, mean_squares(channels), entries, head["kernel"])
        return products[0].reshape(leaf.shape) + head["bias"][0].astype(products.dtype)

    def _unf(self, channels: Sequence[Channels], features: dict[int, Array]) -> list[Float[Array, "*shape"]]:
        head, tied = self.params["head"], self.config.coefficients == "tied"
        leaves = tensors(self.spec, fixed_as_permuted=tied)
        heights = [self.config.hidden_channels * leaf.positions for leaf in leaves]

        def matrix(name: str, std: np.ndarray) -> Array:
            return head[name] if name in head else jnp.zeros(std.shape)

        contracted: list[Contracted] = []
        for n, leaf in enumerate(self.spec.leaves):
            if n not in self.large:
                for block in split_blocks(features[n], leaf, leading=1):
                    tensor = leaves[len(contracted)]
                    contracted.append(contract(positions_to_channels(block, tensor), tensor.names))
                continue
            squares = mean_squares(channels[n])
            for inputs in zip(*(split_blocks(x, leaf) for x in channels[n]), strict=True):
                whole = (whole_tied if tied else whole_full)(matrix, leaves, heights, len(contracted), 1)
                products, means = self._stream(inputs, squares, leaves[len(contracted)], whole)
                contracted.append([Arrived(products), *means])
        terms = (mix_tied if tied else mix_full)(matrix, leaves, contracted, 1, use_bias=True)
        outputs = [functools.reduce(operator.add, arrived) for arrived in terms]
        blocks = [channels_to_positions(y, leaf, 1) for y, leaf in zip(outputs, leaves, strict=True)]
        return [y[0] for y in from_blocks(blocks, self.spec)]
