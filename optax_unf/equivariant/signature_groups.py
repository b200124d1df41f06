"""Where the contractions of all leaves meet the expansions onto them: in their signatures."""

import dataclasses
import functools
from collections.abc import Sequence

from optax_unf.equivariant.contract import (
    Contraction,
    Diagonals,
    Expansion,
    Signature,
    Tensor,
    contractions,
    expansions,
)


@dataclasses.dataclass(frozen=True)
class SignatureGroup:
    """All contractions and expansions with one signature.

    A source is `(leaf, k)`: the k-th contraction of that leaf; a target is `(leaf, expansion)`.
    """

    signature: Signature
    sources: tuple[tuple[int, int], ...]
    targets: tuple[tuple[int, Expansion], ...]

    @property
    def label(self) -> str:
        """The signature as a suffix of a parameter's name."""
        return "".join(f"_{name}" for name in self.signature)

    @functools.cached_property
    def _by_leaf(self) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        for leaf, k in self.sources:
            found.setdefault(leaf, []).append(k)
        return found

    def of_leaf(self, leaf: int) -> list[int]:
        """The contractions of one leaf among the sources."""
        return self._by_leaf.get(leaf, [])


@functools.lru_cache(maxsize=64)
def signature_groups(leaves: tuple[Tensor, ...]) -> tuple[SignatureGroup, ...]:
    """The signature groups of a weight space, sorted by signature."""
    sources: dict[Signature, list[tuple[int, int]]] = {}
    for leaf, tensor in enumerate(leaves):
        for k, (_, signature) in enumerate(contractions(tensor.names)):
            sources.setdefault(signature, []).append((leaf, k))
    # A leaf can only receive signatures made of its own names, each at most as often as it has axes of it; those
    # are the signatures of its contractions.
    targets: dict[Signature, list[tuple[int, Expansion]]] = {signature: [] for signature in sources}
    for leaf, tensor in enumerate(leaves):
        for signature in dict.fromkeys(s for _, s in contractions(tensor.names)):
            targets[signature] += [(leaf, e) for e in expansions(tensor.names, signature)]
    return tuple(SignatureGroup(s, tuple(sources[s]), tuple(targets[s])) for s in sorted(sources))


def group_of(leaves: tuple[Tensor, ...], source: tuple[int, int]) -> SignatureGroup:
    """The group that a contraction of a leaf belongs to."""
    return _by_source(leaves)[source]


@functools.lru_cache(maxsize=64)
def _by_source(leaves: tuple[Tensor, ...]) -> dict[tuple[int, int], SignatureGroup]:
    return {source: group for group in signature_groups(leaves) for source in group.sources}


def is_own(source: tuple[int, int], target: tuple[int, Expansion], leaves: Sequence[Tensor]) -> bool:
    """Whether the pair is the identity map of a leaf."""
    (leaf, k), (to, expansion) = source, target
    if leaf != to:
        return False
    contraction: Contraction = contractions(leaves[leaf].names)[k][0]
    keeps_all = len(contraction.kept) == len(leaves[leaf].names)
    return keeps_all and contraction.diagonals == expansion.diagonals and contraction.kept == expansion.attached


@dataclasses.dataclass(frozen=True)
class Role:
    """What a contraction does, in terms that do not depend on the names of the axes.

    Attributes:
      axes: a character per axis: lower case for kept diagonals, `.` for an averaged axis, upper case for an averaged
        diagonal.
      letters: the characters of the result's axes.
    """

    axes: str
    letters: str


def role_of(contraction: Contraction) -> Role:
    """The role of a contraction."""
    letter = {b: chr(ord("a") + n) for n, b in enumerate(sorted(contraction.kept))}
    return Role(_axes_string(contraction.diagonals, letter), "".join(letter[b] for b in contraction.kept))


def label_of(role: Role, expansion: Expansion) -> str:
    """The pair of a role and an expansion, as in `.a>a`."""
    letter = dict(zip(expansion.attached, role.letters, strict=True))
    return f"{role.axes}>{_axes_string(expansion.diagonals, letter)}"


def _axes_string(diagonals: Diagonals, letter: dict[int, str]) -> str:
    characters = {}
    for b, diagonal in enumerate(diagonals):
        character = letter.get(b, "." if len(diagonal) == 1 else chr(ord("A") + b))
        characters.update(dict.fromkeys(diagonal, character))
    return "".join(characters[axis] for axis in sorted(characters))


def is_entry_or_mean(label: str) -> bool:
    """Whether the pair takes each entry, or the mean, of a leaf to the leaf itself."""
    source, target = label.split(">")
    distinct = len(set(source)) == len(source) and source.isalpha() and source.islower()
    return source == target and (not source or distinct or set(source) == {"."})


def mean_index(tensor: Tensor) -> int:
    """Which contraction of the leaf is its mean."""
    return next(
        k
        for k, (contraction, signature) in enumerate(contractions(tensor.names))
        if not signature and len(contraction.diagonals) == len(tensor.names)
    )


def roles(group: SignatureGroup, leaves: tuple[Tensor, ...]) -> dict[Role, list[tuple[int, int]]]:
    """The sources of a group by their roles."""
    found: dict[Role, list[tuple[int, int]]] = {}
    for leaf, k in group.sources:
        found.setdefault(role_of(contractions(leaves[leaf].names)[k][0]), []).append((leaf, k))
    return found


def own_labels(
    group: SignatureGroup, leaves: tuple[Tensor, ...], leaf: int, expansion: Expansion
) -> list[tuple[str, int]]:
    """The contractions of the target itself, but for the entry and the mean, which each leaf sees anyway."""
    labelled = [(label_of(role_of(contractions(leaves[leaf].names)[k][0]), expansion), k) for k in group.of_leaf(leaf)]
    return [(label, k) for label, k in labelled if not is_entry_or_mean(label)]


@functools.lru_cache(maxsize=64)
def most_terms(leaves: tuple[Tensor, ...]) -> int:
    """How many terms arrive at the leaf that most arrive at, with tied coefficients."""
    counts = [1] * len(leaves)
    for group in signature_groups(leaves):
        roles = {role_of(contractions(leaves[leaf].names)[k][0]) for leaf, k in group.sources}
        for leaf, _ in group.targets:
            counts[leaf] += len(roles) + len(group.of_leaf(leaf))
    return max(counts)
