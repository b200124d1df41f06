"""The meta-weights that come with the package, as a table."""

import dataclasses

from optax_unf.optimizer.weight_files import load_card, load_weights, pretrained_names


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """Meta-weights that come with the package.

    Attributes:
      name: what `unf` and `load_weights` take.
      fits: `"any model"`, or the one model whose parameters these weights train.
      trained_on: the tasks they were meta-trained on.
      head: of f: `"unf"`, `"nfn"`, `"deepsets"`, or `"none"` where f = 0.
      nominal: the nominal term.
      step: how the step size is set.
      outer_steps: of meta-training.
      final_loss: training loss at the end of fresh runs of that task; `None` where there are several tasks, or it was
        not compared.
      loss_of_adam: that of Adam with its best rate, constant or with a cosine.
    """

    name: str
    fits: str
    trained_on: str
    head: str
    nominal: str
    step: str
    outer_steps: int
    final_loss: float | None = None
    loss_of_adam: float | None = None


class Listing(tuple[Pretrained, ...]):
    """Records, printed as a table."""

    __slots__ = ()

    @property
    def names(self) -> tuple[str, ...]:
        """What `load_weights` takes."""
        return tuple(record.name for record in self)

    def __repr__(self) -> str:
        titles = tuple(field.name.replace("_", " ") for field in dataclasses.fields(Pretrained))
        rows = [titles, *(tuple(map(_shown, dataclasses.astuple(record))) for record in self)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _shown(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def list_pretrained() -> Listing:
    """The meta-weights that come with the package; those for any model first. Print it for a table.

    Example:
      >>> list_pretrained()[0].name
      'universal'
      >>> "mlp-fashion-mnist-unf" in list_pretrained().names
      True
    """
    records = [_record(name) for name in pretrained_names()]
    return Listing(sorted(records, key=lambda x: (x.name != "universal", x.fits != "any model", x.name)))


def _record(name: str) -> Pretrained:
    weights, card = load_weights(name), load_card(name)
    architecture, compared = weights.architecture, card.get("comparison", {})
    kind = f", {architecture.coefficients}" if architecture.head == "unf" else ""
    found = "found" if architecture.step == "distance" else f"alpha, {float(weights.alpha):.2g}"
    return Pretrained(
        name=name,
        fits=f"{card['task']} alone" if architecture.fits_one_space else "any model",
        trained_on=card["task"] if card["outer_steps"] else "none yet",
        head=f"{architecture.head}{kind}",
        nominal="Adam's"
        if architecture.nominal == "momentum" and architecture.preconditioner
        else architecture.nominal,
        step=found,
        outer_steps=card["outer_steps"],
        final_loss=compared.get("final_loss"),
        loss_of_adam=compared.get("final_loss_of_adam"),
    )
