"""The architecture of a learned optimizer."""

import dataclasses
from typing import Literal, TypeAlias, get_args

from optax_unf.equivariant.unf import Coefficients

Head: TypeAlias = Literal["unf", "nfn", "deepsets", "none"]
Normalization: TypeAlias = Literal["leaf", "entry"]
Nominal: TypeAlias = Literal["momentum", "orthogonalized"]
Step: TypeAlias = Literal["alpha", "distance"]


_CHOICES = {
    "head": Head,
    "coefficients": Coefficients,
    "normalization": Normalization,
    "nominal": Nominal,
    "step": Step,
}


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The architecture of a learned optimizer, and its scalars before meta-training.

    Attributes:
      head: the last layer of f: `"unf"`, `"nfn"`, `"deepsets"`, or `"none"` for f = 0, which is SGD with momentum.
      coefficients: of a UNF head: `"full"` (fits one weight space) or `"tied"` (fits any).
      hidden_channels: width of the trunk.
      hidden_layers: Deep Sets layers before the head.
      pool: whether the trunk's Deep Sets layers have their pooled part.
      normalization: of gradients and momenta. `"leaf"`: for f, each is divided by its root mean square in the leaf.
        `"entry"`: gradients are divided by their root mean square over time, entry by entry as in Adam, before anything
        else, and momenta for f by what theirs would be if gradients were noise; this takes one more accumulator. The
        nominal term is then that of Adam, and alpha has the size of its rates.
      nominal: the nominal term. `"momentum"` as in the paper, or `"orthogonalized"`: `scale_by_orthogonal`, with the
        step of Adam where there is no matrix, whatever the normalization.
      step: what the direction is multiplied by. `"alpha"` as in the paper, or `"distance"`: alpha times a size that is
        found while training (`scale_by_found_step`); alpha is then best near 1.
      alpha: initial step size.
      gamma_0: initial decay of the nominal momentum.
      beta: initial weight of f.
      step_warmup: initial time constant tau of a warm-up, in steps: step t is multiplied by 1 - exp(-t / tau) (Ma &
        Yarats 2021, arXiv:1910.04209), and tau meta-trained. With 0 there is none, as in the paper.
    """

    head: Head = "unf"
    coefficients: Coefficients = "full"
    hidden_channels: int = 32
    hidden_layers: int = 3
    pool: bool = False
    normalization: Normalization = "leaf"
    nominal: Nominal = "momentum"
    step: Step = "alpha"
    alpha: float = 0.1
    gamma_0: float = 0.9
    beta: float = 1e-3
    step_warmup: float = 0.0

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if (chosen := getattr(self, name)) not in get_args(choices):
                *others, last = map(repr, get_args(choices))
                raise ValueError(f"{name} must be {', '.join(others)} or {last}, but is {chosen!r}.")
        if self.hidden_channels < 1 or self.hidden_layers < 1:
            raise ValueError(
                f"hidden_channels and hidden_layers must be positive, but are {self.hidden_channels} and "
                f"{self.hidden_layers}."
            )
        if not (self.alpha > 0 and 0 < self.gamma_0 < 1):
            raise ValueError(f"alpha must be positive and gamma_0 in (0, 1), but are {self.alpha} and {self.gamma_0}.")
        if not self.step_warmup >= 0:
            raise ValueError(f"step_warmup must be a number of steps, or 0 for none, but is {self.step_warmup}.")

    @property
    def fits_one_space(self) -> bool:
        """Whether weights of this architecture belong to one weight space."""
        return self.head == "nfn" or (self.head == "unf" and self.coefficients == "full")

    @property
    def scales_entries(self) -> bool:
        """Whether gradients are divided by their root mean square over time, which the state then holds."""
        return self.normalization == "entry"
