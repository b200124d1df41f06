"""Learned optimizers built from universal neural functionals, as optax transformations."""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from optax_unf import nominal as nominal
from optax_unf import tasks as tasks
from optax_unf.infer import Inferred as Inferred
from optax_unf.infer import infer_spec as infer_spec
from optax_unf.nominal import ScaleByDistanceState as ScaleByDistanceState
from optax_unf.nominal import ScaleByOrthogonalState as ScaleByOrthogonalState
from optax_unf.nominal import ScaleBySoapState as ScaleBySoapState
from optax_unf.nominal import describe_matrices as describe_matrices
from optax_unf.nominal import in_units as in_units
from optax_unf.nominal import muon_dimension_numbers as muon_dimension_numbers
from optax_unf.nominal import orthogonal as orthogonal
from optax_unf.nominal import orthogonal_prodigy as orthogonal_prodigy
from optax_unf.nominal import scale_by_distance as scale_by_distance
from optax_unf.nominal import scale_by_found_step as scale_by_found_step
from optax_unf.nominal import scale_by_orthogonal as scale_by_orthogonal
from optax_unf.nominal import scale_by_soap as scale_by_soap
from optax_unf.optimizer.architecture import Architecture as Architecture
from optax_unf.optimizer.architecture import InitialScalars as InitialScalars
from optax_unf.optimizer.meta_weights import MetaWeights as MetaWeights
from optax_unf.optimizer.meta_weights import init_weights as init_weights
from optax_unf.optimizer.pretrained import Pretrained as Pretrained
from optax_unf.optimizer.pretrained import list_pretrained as list_pretrained
from optax_unf.optimizer.scale_by_unf import ScaleByUNFState as ScaleByUNFState
from optax_unf.optimizer.scale_by_unf import scale_by_unf as scale_by_unf
from optax_unf.optimizer.transfer import transfer_weights as transfer_weights
from optax_unf.optimizer.unf import unf as unf
from optax_unf.optimizer.weight_files import load_card as load_card
from optax_unf.optimizer.weight_files import load_weights as load_weights
from optax_unf.optimizer.weight_files import save_weights as save_weights
from optax_unf.spec.axes import Concat as Concat
from optax_unf.spec.axes import Fixed as Fixed
from optax_unf.spec.check_spec import SpecError as SpecError
from optax_unf.spec.check_spec import check_spec as check_spec
from optax_unf.spec.make_spec import make_spec as make_spec
from optax_unf.spec.permutation_spec import PermutationSpec as PermutationSpec

__version__ = "0.1.0"

if TYPE_CHECKING:
    from optax_unf import compare as compare
    from optax_unf import meta as meta
    from optax_unf import nn as nn
else:
    # They need packages that training with an optimizer does not.
    _ON_DEMAND = ("compare", "meta", "nn")
    _NEED_FLAX = ("compare", "nn")

    def __getattr__(name: str) -> Any:
        if name in _ON_DEMAND:
            return importlib.import_module(f"optax_unf.{name}")
        raise AttributeError(f"module 'optax_unf' has no attribute {name!r}")

    def __dir__() -> list[str]:
        # `help` imports what is listed.
        lacking = () if importlib.util.find_spec("flax") else _NEED_FLAX
        return sorted({*globals(), *_ON_DEMAND}.difference(lacking, ("Any", "TYPE_CHECKING", "importlib")))
