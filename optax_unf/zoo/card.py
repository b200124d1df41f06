"""The card of a zoo."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from optax_unf.zoo.population import Zoo

_BINS = 10


def make_card(zoo: Zoo, made: Mapping[str, Any], file: Path | None = None) -> dict[str, Any]:
    """What a zoo is and how it was made, as JSON has it.

    Args:
      zoo: the models.
      made: as `optax_unf.meta.card.provenance` gives it.
      file: the written zoo, for its checksum.
    """
    rates = zoo.success_rate
    return {
        "models": len(zoo),
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest() if file else None,
        "success_rate": {
            "histogram": np.histogram(rates, _BINS, (0, 1))[0].tolist(),
            "below 0.02": round(float(np.mean(rates < 0.02)), 4),
            "above 0.98": round(float(np.mean(rates > 0.98)), 4),
        },
        "seconds": round(float(np.sum(zoo.records.get("seconds", 0.0)))),
        "config": zoo.config.to_dict(),
        **made,
    }
