"""Meta-training of learned optimizers."""

from optax_unf.meta import distributed as distributed
from optax_unf.meta.config import MetaTrainConfig as MetaTrainConfig
from optax_unf.meta.config import Stage as Stage
from optax_unf.meta.estimators.backprop import Backprop as Backprop
from optax_unf.meta.estimators.estimator import Estimator as Estimator
from optax_unf.meta.estimators.evolution import NRES as NRES
from optax_unf.meta.estimators.evolution import PES as PES
from optax_unf.meta.estimators.evolution import FullES as FullES
from optax_unf.meta.estimators.evolution import TruncatedES as TruncatedES
from optax_unf.meta.evaluate import final_loss as final_loss
from optax_unf.meta.evaluate import training_losses as training_losses
from optax_unf.meta.fresh import fresh_keys as fresh_keys
from optax_unf.meta.fresh import fresh_runs as fresh_runs
from optax_unf.meta.inner import InnerProblem as InnerProblem
from optax_unf.meta.inner import InnerRun as InnerRun
from optax_unf.meta.inner import Training as Training
from optax_unf.meta.inner import learned_training as learned_training
from optax_unf.meta.plot import plot_run as plot_run
from optax_unf.meta.train import MetaTrainResult as MetaTrainResult
from optax_unf.meta.train import meta_train as meta_train
