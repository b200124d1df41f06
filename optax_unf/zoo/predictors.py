"""The predictors of the table, each with settings chosen on validation data."""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from optax_unf.infer.infer_spec import infer_spec
from optax_unf.nn.predictor import InvariantPredictor
from optax_unf.spec.leaf import LeafSpec
from optax_unf.spec.make_spec import make_spec
from optax_unf.spec.permutation_spec import PermutationSpec
from optax_unf.zoo.cells import CellName
from optax_unf.zoo.fit import FitConfig, Fitted, fit, predict
from optax_unf.zoo.population import Zoo
from optax_unf.zoo.seq2seq import Seq2Seq
from optax_unf.zoo.statistics import StatNN, weight_statistics, with_joined_gates
from optax_unf.zoo.trees import fit_trees

PredictorName: TypeAlias = Literal["unf", "unf-tied", "deepsets", "statnn", "trees"]
LABELS: dict[PredictorName, str] = {
    "unf": "UNF",
    "unf-tied": "UNF, tied",
    "deepsets": "Deep Sets",
    "statnn": "StatNN",
    "trees": "boosted trees on statistics",
}
# Predicted rates of any zoo, also of other sizes where the predictor fits those.
Predict: TypeAlias = Callable[[Zoo], Float[np.ndarray, " models"]]


def fits(name: PredictorName, cell: CellName, other: CellName, *, join_gates: bool) -> bool:
    """Whether a predictor of models of one cell can say something of those of another.

    It has to join the gates, since other cells have others; and full coefficients belong to one list of leaves.
    """
    return cell == other or (join_gates and name != "unf")


def fit_predictor(
    name: PredictorName,
    train: Zoo,
    validation: Zoo,
    seed: int,
    config: FitConfig | None = None,
    *,
    join_gates: bool = False,
    **settings: Any,
) -> tuple[Fitted, Predict]:
    """Trains a predictor of success rates.

    Args:
      name: which.
      train: the models to train on.
      validation: those to stop by.
      seed: of initial weights and order.
      config: how to train; by default as the table has it.
      join_gates: whether the gates of a cell are normalized and pooled as one array; then it fits other cells, see
        `fits`.
      **settings: of the module, in place of the table's.

    Returns:
      The trained predictor, and its predictions as a function of a zoo.
    """
    config = config or FitConfig()
    if name in ("statnn", "trees"):

        def statistics(zoo: Zoo) -> Float[np.ndarray, "models statistics"]:
            return weight_statistics(with_joined_gates(zoo.params) if join_gates else zoo.params)

        known, checked = ((statistics(zoo), zoo.success_rate) for zoo in (train, validation))
        if name == "trees":
            fitted = fit_trees(known, checked, seed)
        else:
            fitted = fit(StatNN(**settings), known, checked, jax.random.key(seed), config)
        return fitted, lambda zoo: fitted.predict(statistics(zoo))

    def module_for(zoo: Zoo) -> InvariantPredictor:
        spec = model_spec(zoo.model, characters="permuted")
        # `encoder/input/reset` belongs to `encoder/input`; the layer `out` has no gates.
        groups = tuple("/".join(leaf.path.split("/")[:2]) for leaf in spec.leaves) if join_gates else None
        return InvariantPredictor(spec, layer=name, groups=groups, **settings)

    known, checked = ((zoo.params, zoo.success_rate) for zoo in (train, validation))
    fitted = fit(module_for(train), known, checked, jax.random.key(seed), config)
    return fitted, lambda zoo: predict(module_for(zoo), fitted.variables, zoo.params)


def model_spec(model: Seq2Seq, *, characters: Literal["fixed", "permuted"] = "fixed") -> PermutationSpec:
    """The permutation spec of a model of the zoo, inferred from its loss.

    Its hidden units permute, those of encoder and decoder together, since the state is handed over.

    Args:
      model: the architecture.
      characters: `"fixed"`, which is the truth; or `"permuted"`, those asked, read and written apart, as the paper
        simplifies: then a layer has a tenth of the weights.

    Example:
      >>> print([leaf.axes for leaf in model_spec(Seq2Seq(4, "vanilla")).leaves][:3])
      [('decoder/bias/new:0',), (None, 'decoder/bias/new:0'), ('decoder/bias/new:0', 'decoder/bias/new:0')]
    """
    params = jax.eval_shape(model.init, jax.random.key(0))
    one = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    spec = infer_spec(model.loss, params, one, one)
    if characters == "fixed":
        return spec

    def axes(leaf: LeafSpec) -> tuple[Any, ...]:
        name = f"characters of {leaf.path.partition('/')[0]}"
        return tuple(name if axis is None else axis for axis in leaf.axes)

    return make_spec(spec.unflatten([axes(leaf) for leaf in spec.leaves], params), params)
