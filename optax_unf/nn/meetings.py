"""Where the contractions of all leaves meet the expansions onto them: in their signatures."""

import dataclasses
import functools
from collections.abc import Sequence

from optax_unf.nn.contract import Blocks, Contraction, Expansion, Signature, Tensor, contractions, expansions


@dataclasses.dataclass(frozen=True)
class Meeting:
    """All contractions and expansions with one signature.

    A departure is `(leaf, k)`: the k-th contraction of that leaf; an arrival is `(leaf, expansion)`.
    """

    signature: Signature
    departures: tuple[tuple[int, int], ...]
    arrivals: tuple[tuple[int, Expansion], ...]

    @property
    def label(self) -> str:
        """The signature as a suffix of a parameter's name."""
        return "".join(f"_{name}" for name in self.signature)

    @functools.cached_property
    def _by_leaf(self) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        for leaf, k in self.departures:
            found.setdefault(leaf, []).append(k)
        return found

    def of_leaf(self, leaf: int) -> list[int]:
        """The contractions of one leaf among the departures."""
        return self._by_leaf.get(leaf, [])


@functools.lru_cache(maxsize=64)
def meetings(leaves: tuple[Tensor, ...]) -> tuple[Meeting, ...]:
    """The meetings of a weight space, sorted by signature."""
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
    return tuple(Meeting(s, tuple(departures[s]), tuple(arrivals[s])) for s in sorted(departures))


def meeting_of(leaves: tuple[Tensor, ...], departure: tuple[int, int]) -> Meeting:
    """The meeting that a contraction of a leaf departs to."""
    return _by_departure(leaves)[departure]


@functools.lru_cache(maxsize=64)
def _by_departure(leaves: tuple[Tensor, ...]) -> dict[tuple[int, int], Meeting]:
    return {departure: meeting for meeting in meetings(leaves) for departure in meeting.departures}


def is_own(departure: tuple[int, int], arrival: tuple[int, Expansion], leaves: Sequence[Tensor]) -> bool:
    """Whether the pair is the identity map of a leaf."""
    (source, k), (target, expansion) = departure, arrival
    if source != target:
        return False
    contraction: Contraction = contractions(leaves[source].names)[k][0]
    keeps_all = len(contraction.kept) == len(leaves[source].names)
    return keeps_all and contraction.blocks == expansion.blocks and contraction.kept == expansion.attached


@dataclasses.dataclass(frozen=True)
class Role:
    """What a contraction does, in terms that do not depend on the names of the axes.

    Attributes:
      axes: a character per axis: lower case for kept blocks, `.` for an averaged axis, upper case for an averaged
        diagonal.
      letters: the characters of the result's axes.
    """

    axes: str
    letters: str


def role_of(contraction: Contraction) -> Role:
    """The role of a contraction."""
    letter = {b: chr(ord("a") + n) for n, b in enumerate(sorted(contraction.kept))}
    return Role(_axes_string(contraction.blocks, letter), "".join(letter[b] for b in contraction.kept))


def label_of(role: Role, expansion: Expansion) -> str:
    """The pair of a role and an expansion, as in `.a>a`."""
    letter = dict(zip(expansion.attached, role.letters, strict=True))
    return f"{role.axes}>{_axes_string(expansion.blocks, letter)}"


def _axes_string(blocks: Blocks, letter: dict[int, str]) -> str:
    characters = {}
    for b, block in enumerate(blocks):
        character = letter.get(b, "." if len(block) == 1 else chr(ord("A") + b))
        characters.update(dict.fromkeys(block, character))
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
        if not signature and len(contraction.blocks) == len(tensor.names)
    )


@functools.lru_cache(maxsize=64)
def most_terms(leaves: tuple[Tensor, ...]) -> int:
    """How many terms arrive at the leaf that most arrive at, with tied coefficients."""
    counts = [1] * len(leaves)
    for meeting in meetings(leaves):
        roles = {role_of(contractions(leaves[leaf].names)[k][0]) for leaf, k in meeting.departures}
        for leaf, _ in meeting.arrivals:
            counts[leaf] += len(roles) + len(meeting.of_leaf(leaf))
    return max(counts)
