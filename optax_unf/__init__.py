"""Learned optimizers built from universal neural functionals, as optax transformations."""

from optax_unf.network import OptimizerConfig as OptimizerConfig
from optax_unf.optimizer import ScaleByUNFState as ScaleByUNFState
from optax_unf.optimizer import scale_by_unf as scale_by_unf
from optax_unf.optimizer import unf as unf
from optax_unf.spec import PermutationSpec as PermutationSpec
from optax_unf.spec import make_spec as make_spec
from optax_unf.weights import MetaWeights as MetaWeights
from optax_unf.weights import init_weights as init_weights
