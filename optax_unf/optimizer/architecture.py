"""The architecture of a learned optimizer, and its scalars before meta-training."""

import dataclasses
from typing import Literal, TypeAlias, get_args

from optax_unf._arguments import check_choice
from optax_unf.equivariant.unf import Coefficients

Head: TypeAlias = Literal["unf", "nfn", "deepsets", "mixture", "none"]
Preconditioner: TypeAlias = Literal["rms"] | None
Nominal: TypeAlias = Literal["momentum", "orthogonalized", "soap"]
Step: TypeAlias = Literal["alpha", "distance"]


_CHOICES = {
    "head": get_args(Head),
    "coefficients": get_args(Coefficients),
    "preconditioner": (None, "rms"),
    "nominal": get_args(Nominal),
    "step": get_args(Step),
}

# What else a mixture consists of.
_OF_MIXTURE = {
    "nominal": "orthogonalized",
    "step": "distance",
    "hidden_layers": 1,
    "pool": False,
    "preconditioner": None,
    "step_warmup": False,
}


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The architecture of a learned optimizer: all that is not a number of theta.

    Attributes:
      head: the last layer of f: `"unf"`, `"nfn"`, `"deepsets"`; `"mixture"` for an f that says a few numbers about each
        leaf, not about each entry: the size of its step, and the weights of directions that are added to the nominal
        term (see `optimizer/mixture.py`); or `"none"` for f = 0, which is SGD with momentum.
      coefficients: of UNF layers: `"full"` (fits one weight space) or `"tied"` (fits any).
      hidden_channels: width of the trunk.
      hidden_layers: layers before the head, each with a ReLU.
      equivariant_layers: those of them that are of the head's kind, by number from 1 on, 0 being the first, which sees
        one entry at a time. The others are Deep Sets layers. What a neuron's neighbours say is then processed further.
        Leaves are evaluated whole, large ones too.
      pool: whether the trunk's Deep Sets layers have their pooled part.
      preconditioner: `None`, or `"rms"`: before anything else, gradients are divided by their root mean square over
        time, entry by entry as in Adam. The nominal term is then that of Adam, and alpha has the size of its rates. For
        f, momenta are divided by what theirs would be if gradients were noise; without a preconditioner, gradients and
        momenta are divided by their root mean square in the leaf.
      nominal: the nominal term. `"momentum"` as in the paper; `"orthogonalized"`: `scale_by_orthogonal`; or `"soap"`:
        `scale_by_soap`. The last two make the step of Adam where there is no matrix, whatever the preconditioner.
      step: what the direction is multiplied by. `"alpha"` as in the paper, or `"distance"`: alpha times a size that is
        found while training (`scale_by_found_step`); alpha is then best near 1.
      step_warmup: whether step t is multiplied by 1 - exp(-t / tau) (Ma & Yarats 2021, arXiv:1910.04209), with a time
        constant tau that is meta-trained.
    """

    head: Head = "unf"
    coefficients: Coefficients = "full"
    hidden_channels: int = 32
    hidden_layers: int = 3
    equivariant_layers: tuple[int, ...] = ()
    pool: bool = False
    preconditioner: Preconditioner = None
    nominal: Nominal = "momentum"
    step: Step = "alpha"
    step_warmup: bool = False

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            check_choice(name, getattr(self, name), choices)
        if self.hidden_channels < 1 or self.hidden_layers < 1:
            raise ValueError(
                f"hidden_channels and hidden_layers must be positive, but are {self.hidden_channels} and "
                f"{self.hidden_layers}."
            )
        for name, wanted in _OF_MIXTURE.items():
            if self.head == "mixture" and (found := getattr(self, name)) != wanted:
                raise ValueError(f"Beside head='mixture' {name} must be {wanted!r}, but is {found!r}.")
        if self.equivariant_layers and self.head not in ("unf", "nfn"):
            raise ValueError(f"equivariant_layers are of the head's kind, 'unf' or 'nfn', but head is {self.head!r}.")
        if not set(self.equivariant_layers) <= set(range(1, self.hidden_layers)):
            raise ValueError(
                f"equivariant_layers must be numbers from 1 to {self.hidden_layers - 1}, the last of the "
                f"{self.hidden_layers} hidden layers, but are {self.equivariant_layers}."
            )

    @property
    def fits_one_space(self) -> bool:
        """Whether weights of this architecture belong to one weight space."""
        return self.head == "nfn" or (self.head == "unf" and self.coefficients == "full")

    @property
    def usual_alpha(self) -> float:
        """A step size to begin meta-training with, beside this nominal term."""
        if self.step == "distance":
            return 1.0
        return 0.1 if self.nominal == "momentum" and self.preconditioner is None else 1e-3


@dataclasses.dataclass(frozen=True)
class InitialScalars:
    """The scalars of Eq. 31 before meta-training.

    Attributes:
      alpha: step size; `None` for `Architecture.usual_alpha`: 0.1 beside momentum, 1e-3 beside a nominal term of Adam's
        size, 1 where the step is found while training.
      gamma_0: decay of the nominal momentum.
      beta: weight of f.
      warmup_time: time constant of the warm-up, in steps, where there is one.
    """

    alpha: float | None = None
    gamma_0: float = 0.9
    beta: float = 1e-3
    warmup_time: float = 100.0

    def __post_init__(self) -> None:
        if self.alpha is not None and not self.alpha > 0:
            raise ValueError(f"alpha must be positive, but is {self.alpha}.")
        if not 0 < self.gamma_0 < 1:
            raise ValueError(f"gamma_0 must be in (0, 1), but is {self.gamma_0}.")
        if not self.warmup_time > 0:
            raise ValueError(f"warmup_time must be a positive number of steps, but is {self.warmup_time}.")
