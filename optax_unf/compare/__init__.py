"""Optimizers beside tuned baselines: on a suite of networks, and on single tasks."""

from optax_unf.compare.contenders import BASELINES as BASELINES
from optax_unf.compare.contenders import Contender as Contender
from optax_unf.compare.contenders import candidate as candidate
from optax_unf.compare.optimizers import compare_optimizers as compare_optimizers
from optax_unf.compare.plot import plot_comparisons as plot_comparisons
from optax_unf.compare.problems import PhysicsInformed as PhysicsInformed
from optax_unf.compare.problems import Supervised as Supervised
from optax_unf.compare.records import Record as Record
from optax_unf.compare.records import Records as Records
from optax_unf.compare.results import read_comparisons as read_comparisons
from optax_unf.compare.runs import measure as measure
from optax_unf.compare.speed import speed_up as speed_up
from optax_unf.compare.suite import PROBE as PROBE
from optax_unf.compare.suite import QUICK as QUICK
from optax_unf.compare.suite import UNSEEN as UNSEEN
