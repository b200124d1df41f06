"""Positions along axes, as further channels that break a symmetry."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, DTypeLike, Float

from optax_unf._arguments import check_is_spec
from optax_unf._flax import linen as nn
from optax_unf.equivariant.layout import Features, channels_first, to_tree
from optax_unf.spec.axes import Name
from optax_unf.spec.leaf import LeafSpec, Part, join_parts
from optax_unf.spec.paths import show_path
from optax_unf.spec.permutation_spec import PermutationSpec


class PositionalEncoding(nn.Module):
    r"""Appends sinusoidal encodings of the index along named axes.

    The layers that follow can then tell apart what the spec lets permute, such as the inputs and outputs of a network
    (the IO-encoding of Zhou et al. 2023a, arXiv:2302.14040); the symmetry of all other names is kept. An index, scaled
    to t in [0, 1], is encoded as `sin(2^f pi t)` and `cos(2^f pi t)` for octaves f = 0, 1, ...; since cos(pi t) is
    monotone, no two indices have the same encoding.

    Every leaf gets `2 * frequencies` further channels for each entry of `names`: zeros if it has no such axis. Several
    axes of one name in one leaf take turns: of n axes, axis r has octave f in the pair of channels `f * n + r`. Each
    is then encoded by itself, with fewer octaves, and no two entries of the leaf have the same encoding. Each part of
    a leaf with `Concat` axes counts as a leaf.

    Attributes:
      spec: the permutation spec of the weight space.
      names: names of the axes to encode. `None` stands for fixed axes.
      frequencies: number of octaves, at least the number of axes of one name in one leaf.

    Raises:
      TypeError: `spec` is no `PermutationSpec`.
      ValueError: the spec has no axis of one of the names, or a leaf has more of them than there are frequencies (at
        construction), or the input has other leaves or shapes than the spec.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optax_unf import make_spec
      >>> params = {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}
      >>> spec = make_spec({"w": ("in", "out"), "b": ("out",)}, params)
      >>> x = jax.tree.map(lambda leaf: leaf[..., None], params)
      >>> y = PositionalEncoding(spec, names=("in",), frequencies=1).apply({}, x)
      >>> [[round(float(v), 3) for v in row] for row in y["w"][:, 0]]
      [[1.0, 0.0, 1.0], [1.0, 1.0, 0.0], [1.0, 0.0, -1.0]]
      >>> y["b"][0]
      Array([1., 0., 0.], dtype=float32)
    """

    spec: PermutationSpec
    names: tuple[Name | None, ...]
    frequencies: int = 4

    def __post_init__(self) -> None:
        check_is_spec(self.spec, "PositionalEncoding's spec")
        _check(self.spec, self.names, self.frequencies)
        super().__post_init__()

    def __call__(self, features: Features) -> Features:
        """Appends the encodings.

        Args:
          features: a pytree of features.

        Returns:
          A tree of the same structure with `2 * frequencies * len(names)` more channels; each leaf keeps its dtype.
        """
        xs = channels_first(features, self.spec)
        ys = [
            jnp.concatenate([x, *(_encoding(leaf, name, self.frequencies, x.dtype) for name in self.names)])
            for leaf, x in zip(self.spec.leaves, xs, strict=True)
        ]
        return to_tree(ys, features, self.spec)


def _check(spec: PermutationSpec, names: Sequence[Name | None], frequencies: int) -> None:
    if isinstance(names, str):
        raise ValueError(f"names must be a tuple of names, but is the string {names!r}. Write ({names!r},).")
    known = {name: None for leaf in spec.leaves for name, _ in leaf.factors}
    for name in names:
        if name not in known:
            raise ValueError(
                f"names must be names of axes in the spec, but {name!r} is not among {list(known)}. Mend it or leave "
                f"it out."
            )
        for leaf in spec.leaves:
            count = max(len(_axes(part, name)) for part in leaf.parts)
            if count > frequencies:
                raise ValueError(
                    f"frequencies must be at least the number of axes of one name in one leaf, but leaf "
                    f"{show_path(leaf.path)} with axes {leaf.axes} has {count} axes {name!r}, and frequencies is "
                    f"{frequencies}."
                )


def _axes(part: Part, name: Name | None) -> list[int]:
    return [axis for axis, (other, _) in enumerate(part.factors) if other == name]


def _encoding(leaf: LeafSpec, name: Name | None, frequencies: int, dtype: DTypeLike) -> Float[Array, "channels *shape"]:
    """The group of channels of one name."""
    return join_parts([_part_encoding(part, name, frequencies, dtype) for part in leaf.parts], leaf, leading=1)


def _part_encoding(
    part: Part, name: Name | None, frequencies: int, dtype: DTypeLike
) -> Float[Array, "channels *factors"]:
    axes = _axes(part, name)
    if not axes:
        return jnp.zeros((2 * frequencies, *part.shape), dtype)
    channels = []
    for pair in range(frequencies):
        octave, turn = divmod(pair, len(axes))
        axis = axes[turn]
        size = part.shape[axis]
        # Computed before tracing, in float64: high octaves of a long axis lose their phase in bfloat16.
        angle = 2**octave * np.pi * np.arange(size) / max(size - 1, 1)
        shape = [size if a == axis else 1 for a in range(len(part.shape))]
        for wave in (np.sin(angle), np.cos(angle)):
            channels.append(jnp.broadcast_to(jnp.asarray(wave, dtype).reshape(shape), part.shape))
    return jnp.stack(channels)
