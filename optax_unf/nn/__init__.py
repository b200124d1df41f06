"""Equivariant layers on weight spaces, as flax modules."""

from optax_unf.nn.deep_sets import DeepSets as DeepSets
from optax_unf.nn.encoding import PositionalEncoding as PositionalEncoding
from optax_unf.nn.nfn import NFN as NFN
from optax_unf.nn.pool import InvariantPool as InvariantPool
from optax_unf.nn.predictor import InvariantPredictor as InvariantPredictor
from optax_unf.nn.predictor_files import load_predictor as load_predictor
from optax_unf.nn.predictor_files import save_predictor as save_predictor
from optax_unf.nn.sequential import Sequential as Sequential
from optax_unf.nn.sequential import nf_relu as nf_relu
from optax_unf.nn.sequential import pointwise as pointwise
from optax_unf.nn.stacked import stack_models as stack_models
from optax_unf.nn.unf import UNF as UNF
