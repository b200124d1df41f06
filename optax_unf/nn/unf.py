"""The equivariant linear layer of universal neural functionals: contract, mix, expand."""

import dataclasses
import functools
import operator
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from optax_unf.contract import (
    Blocks,
    Contraction,
    Expansion,
    Signature,
    Tensor,
    channels_to_positions,
    contract,
    contractions,
    expand,
    expansions,
    positions_to_channels,
    tensors,
)
from optax_unf.nn.layout import ChannelAxis, Features, channels_first, from_blocks, to_blocks, to_tree
from optax_unf.spec import PermutationSpec

Coefficients: TypeAlias = Literal["full", "tied"]

# Outputs have unit variance at initialization. Half of it comes from the entry itself, so that it neither
# vanishes for inputs with zero mean nor grows with the number of leaves.
_OWN_SHARE = 0.5


class UNF(nn.Module):
    """The equivariant linear layer of a universal neural functional, for any permutation spec.

    With `coefficients="full"` it spans all linear equivariant maps (Zhou, Finn & Harrison 2024,
    arXiv:2402.05232, Algorithm 1 and Eq. 30), and its weights fit this spec only. With `"tied"` coefficients,
    leaves share them by role (rank, kept axes, diagonals), so that the weights fit any spec: roles that they have
    never seen contribute nothing, and fixed axes are treated as permuted. Each block of a leaf with `Concat` axes
    counts as a leaf.

    Attributes:
      spec: the permutation spec of the weight space.
      channels: number of output channels.
      coefficients: `"full"` or `"tied"`.
      use_bias: add the constant equivariant maps.
      channel_axis: -1 for leaves `[*shape, channels]`, 0 for `[channels, *shape]`, which is faster on CPUs.

    Raises:
      ValueError: the input has other leaves or shapes than the spec.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optax_unf import make_spec
      >>> params = {"w": jnp.ones((3, 2)), "b": jnp.ones(3)}
      >>> spec = make_spec({"w": ("out", "in"), "b": ("out",)}, params)
      >>> x = jax.tree.map(lambda leaf: leaf[..., None], params)
      >>> y, _ = UNF(spec, channels=4).init_with_output(jax.random.key(0), x)
      >>> y["w"].shape
      (3, 2, 4)
    """

    spec: PermutationSpec
    channels: int
    coefficients: Coefficients = "full"
    use_bias: bool = True
    channel_axis: ChannelAxis = -1

    @nn.compact
    def __call__(self, features: Features) -> Features:
        """Applies the layer."""
        xs = channels_first(features, self.spec, self.channel_axis)
        if not xs:
            return features
        leaves = tensors(self.spec, fixed_as_permuted=self.coefficients == "tied")
        dtype = jnp.result_type(*xs)
        blocks = to_blocks([x.astype(dtype) for x in xs], self.spec)
        inputs = [positions_to_channels(x, leaf) for x, leaf in zip(blocks, leaves, strict=True)]
        contracted = [contract(x, leaf.names) for x, leaf in zip(inputs, leaves, strict=True)]
        mix = self._mix_tied if self.coefficients == "tied" else self._mix_full
        outputs = [functools.reduce(operator.add, terms) for terms in mix(leaves, contracted)]
        blocks = [channels_to_positions(y, leaf, self.channels) for y, leaf in zip(outputs, leaves, strict=True)]
        ys = [y.astype(x.dtype) for y, x in zip(from_blocks(blocks, self.spec), xs, strict=True)]
        return to_tree(ys, features, self.spec, self.channel_axis)

    def _mix_full(self, leaves: tuple[Tensor, ...], contracted: list[list[Array]]) -> list[list[Array]]:
        """The broadcastable terms of every output leaf; each signature is one matrix product."""
        terms: list[list[Array]] = [[] for _ in leaves]
        channels = [ys[0].shape[0] for ys in contracted]
        others = [-c for c in channels]
        meetings = _meetings(leaves)
        for meeting in meetings:
            for leaf, _ in meeting.arrivals:
                others[leaf] += sum(channels[source] for source, _ in meeting.departures)
        for meeting in meetings:
            heights = [channels[leaf] for leaf, _ in meeting.departures]
            widths = [self.channels * leaves[leaf].positions for leaf, _ in meeting.arrivals]
            std = [
                [_std(own=_is_own(d, a, leaves), fan_in=channels[a[0]], others=others[a[0]]) for a in meeting.arrivals]
                for d in meeting.departures
            ]
            scale = np.repeat(np.repeat(np.array(std), heights, axis=0), widths, axis=1)
            kernel = self.param("kernel" + meeting.label, _normal(scale))
            x = jnp.concatenate([contracted[leaf][k] for leaf, k in meeting.departures])
            y = _product(kernel, x)
            if self.use_bias and not meeting.signature:
                y += self.param("bias", nn.initializers.zeros, (sum(widths),)).astype(y.dtype)
            parts = jnp.split(y, np.cumsum(widths)[:-1])
            for part, (leaf, expansion) in zip(parts, meeting.arrivals, strict=True):
                terms[leaf].append(expand(part, expansion, leaves[leaf].sizes))
        return terms

    def _mix_tied(self, leaves: tuple[Tensor, ...], contracted: list[list[Array]]) -> list[list[Array]]:
        """As `_mix_full`, with matrices that belong to pairs of roles rather than to pairs of leaves.

        A leaf sees each of its entries and its mean, whatever its rank; then, for each role, the mean over all leaves
        in it, and its own contraction in that role.
        """
        channels = contracted[0][0].shape[0]
        meetings = _meetings(leaves)
        std = float(np.sqrt((1.0 - _OWN_SHARE) / (channels * _most_terms(leaves, meetings))))
        own_std = float(np.sqrt(_OWN_SHARE / channels))
        kernel = functools.partial(self._role_kernel, shape=(channels, self.channels))
        entry, mean = kernel("entry", std=own_std), kernel("mean", std=std)
        bias = self.param("bias", nn.initializers.zeros, (self.channels,)) if self.use_bias else None

        terms: list[list[Array]] = [[] for _ in leaves]
        for leaf, tensor in enumerate(leaves):
            whole, average = contracted[leaf][0], contracted[leaf][_mean_index(tensor)]
            # The contraction that keeps all axes has them sorted by name; this puts them back in order.
            keep_all = contractions(tensor.names)[0][0]
            identity = Expansion(keep_all.blocks, keep_all.kept)
            constant = _product(mean, average)
            if bias is not None:
                constant += bias.astype(constant.dtype)
            terms[leaf] += [
                expand(_product(entry, whole), identity, tensor.sizes),
                constant.reshape(-1, *(1 for _ in tensor.sizes)),
            ]
        for meeting in meetings:
            roles: dict[_Role, list[Array]] = {}
            for leaf, k in meeting.departures:
                role = _role(contractions(leaves[leaf].names)[k][0])
                roles.setdefault(role, []).append(contracted[leaf][k])
            pooled = jnp.concatenate([sum(xs) / len(xs) for xs in roles.values()])
            arriving: dict[str, Array] = {}
            for leaf, expansion in meeting.arrivals:
                labels = [_label(role, expansion) for role in roles]
                # Leaves in the same role receive the same.
                if labels[0] not in arriving:
                    rows = [kernel("all " + label, std=std) for label in labels]
                    arriving[labels[0]] = _product(jnp.concatenate(rows), pooled)
                y = arriving[labels[0]]
                own = [
                    (_label(_role(contractions(leaves[leaf].names)[k][0]), expansion), contracted[leaf][k])
                    for source, k in meeting.departures
                    if source == leaf
                ]
                own = [(label, x) for label, x in own if not _is_entry_or_mean(label)]
                if own:
                    rows = [kernel("own " + label, std=std) for label, _ in own]
                    y = y + _product(jnp.concatenate(rows), jnp.concatenate([x for _, x in own]))
                terms[leaf].append(expand(y, expansion, leaves[leaf].sizes))
        return terms

    def _role_kernel(self, name: str, *, shape: tuple[int, int], std: float) -> Array:
        if self.is_initializing() or self.has_variable("params", name):
            # Pairs of roles recur; each has one matrix.
            if self.has_variable("params", name):
                return self.get_variable("params", name)
            return self.param(name, nn.initializers.normal(std), shape)
        return jnp.zeros(shape)


@dataclasses.dataclass(frozen=True)
class _Meeting:
    """All contractions and expansions with one signature.

    A departure is `(leaf, k)`: the k-th contraction of that leaf; an arrival is `(leaf, expansion)`.
    """

    signature: Signature
    departures: tuple[tuple[int, int], ...]
    arrivals: tuple[tuple[int, Expansion], ...]

    @property
    def label(self) -> str:
        return "".join(f"_{name}" for name in self.signature)


@functools.lru_cache(maxsize=64)
def _meetings(leaves: tuple[Tensor, ...]) -> tuple[_Meeting, ...]:
    departures: dict[Signature, list[tuple[int, int]]] = {}
    for leaf, tensor in enumerate(leaves):
        for k, (_, signature) in enumerate(contractions(tensor.names)):
            departures.setdefault(signature, []).append((leaf, k))
    # A leaf can only receive signatures made of its own names, each at most as often as it has axes of it; those
    # are the signatures of its contractions.
    arrivals: dict[Signature, list[tuple[int, Expansion]]] = {signature: [] for signature in departures}
    for leaf, tensor in enumerate(leaves):
        for signature in dict.fromkeys(s for _, s in contractions(tensor.names)):
            arrivals[signature] += [(leaf, e) for e in expansions(tensor.names, signature)]
    return tuple(_Meeting(s, tuple(departures[s]), tuple(arrivals[s])) for s in sorted(departures))


def _is_own(departure: tuple[int, int], arrival: tuple[int, Expansion], leaves: Sequence[Tensor]) -> bool:
    """Whether the pair is the identity map of a leaf."""
    (source, k), (target, expansion) = departure, arrival
    if source != target:
        return False
    contraction: Contraction = contractions(leaves[source].names)[k][0]
    keeps_all = len(contraction.kept) == len(leaves[source].names)
    return keeps_all and contraction.blocks == expansion.blocks and contraction.kept == expansion.attached


@dataclasses.dataclass(frozen=True)
class _Role:
    """What a contraction does, in terms that do not depend on the names of the axes.

    Attributes:
      axes: a character per axis: lower case for kept blocks, `.` for an averaged axis, upper case for an averaged
        diagonal.
      letters: the characters of the result's axes.
    """

    axes: str
    letters: str


def _role(contraction: Contraction) -> _Role:
    letter = {b: chr(ord("a") + n) for n, b in enumerate(sorted(contraction.kept))}
    return _Role(_axes_string(contraction.blocks, letter), "".join(letter[b] for b in contraction.kept))


def _label(role: _Role, expansion: Expansion) -> str:
    letter = dict(zip(expansion.attached, role.letters, strict=True))
    return f"{role.axes}>{_axes_string(expansion.blocks, letter)}"


def _axes_string(blocks: Blocks, letter: dict[int, str]) -> str:
    characters = {}
    for b, block in enumerate(blocks):
        character = letter.get(b, "." if len(block) == 1 else chr(ord("A") + b))
        characters.update(dict.fromkeys(block, character))
    return "".join(characters[axis] for axis in sorted(characters))


def _is_entry_or_mean(label: str) -> bool:
    source, target = label.split(">")
    distinct = len(set(source)) == len(source) and source.isalpha() and source.islower()
    return source == target and (not source or distinct or set(source) == {"."})


def _mean_index(tensor: Tensor) -> int:
    """Which contraction of the leaf is its mean."""
    return next(
        k
        for k, (contraction, signature) in enumerate(contractions(tensor.names))
        if not signature and len(contraction.blocks) == len(tensor.names)
    )


def _most_terms(leaves: Sequence[Tensor], meetings: Sequence[_Meeting]) -> int:
    counts = [1] * len(leaves)
    for meeting in meetings:
        roles = {_role(contractions(leaves[leaf].names)[k][0]) for leaf, k in meeting.departures}
        for leaf, _ in meeting.arrivals:
            counts[leaf] += len(roles) + sum(source == leaf for source, _ in meeting.departures)
    return max(counts)


def _std(*, own: bool, fan_in: int, others: int) -> float:
    if own:
        return float(np.sqrt((_OWN_SHARE if others else 1.0) / max(fan_in, 1)))
    return float(np.sqrt((1.0 - _OWN_SHARE) / max(others, 1)))


def _normal(scale: np.ndarray) -> Callable[[Array], Float[Array, "inputs outputs"]]:
    return lambda key: jax.random.normal(key, scale.shape) * jnp.asarray(scale, jnp.float32)


def _product(kernel: Float[Array, "i o"], x: Float[Array, "i *axes"]) -> Float[Array, "o *axes"]:
    return jnp.einsum("io,i...->o...", kernel.astype(x.dtype), x)
