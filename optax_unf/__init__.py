"""Learned optimizers built from universal neural functionals, as optax transformations."""

from optax_unf import nn as nn
from optax_unf import tasks as tasks
from optax_unf.axes import Concat as Concat
from optax_unf.axes import Fixed as Fixed
from optax_unf.check import SpecError as SpecError
from optax_unf.check import check_spec as check_spec
from optax_unf.infer import Inferred as Inferred
from optax_unf.infer import infer_spec as infer_spec
from optax_unf.network import OptimizerConfig as OptimizerConfig
from optax_unf.optimizer import ScaleByUNFState as ScaleByUNFState
from optax_unf.optimizer import scale_by_unf as scale_by_unf
from optax_unf.optimizer import unf as unf
from optax_unf.read_spec import make_spec as make_spec
from optax_unf.spec import PermutationSpec as PermutationSpec
from optax_unf.transfer import transfer_weights as transfer_weights
from optax_unf.weight_files import list_pretrained as list_pretrained
from optax_unf.weight_files import load_card as load_card
from optax_unf.weight_files import load_weights as load_weights
from optax_unf.weight_files import save_weights as save_weights
from optax_unf.weights import MetaWeights as MetaWeights
from optax_unf.weights import init_weights as init_weights
