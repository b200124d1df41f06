"""Predictors on weights: invariance, files, training, scores, the experiment."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from scipy.stats import kendalltau

from optax_unf import check_spec, make_spec
from optax_unf.nn import InvariantPredictor, load_predictor, save_predictor, stack_models
from optax_unf.zoo.config import ZooConfig
from optax_unf.zoo.experiment import read_results, run, split, write_results
from optax_unf.zoo.fit import FitConfig, fit
from optax_unf.zoo.page import mean_and_error, page, write_page
from optax_unf.zoo.population import Zoo
from optax_unf.zoo.predictors import fit_predictor, fits, model_spec
from optax_unf.zoo.scores import score
from optax_unf.zoo.seq2seq import Seq2Seq
from optax_unf.zoo.statistics import StatNN, weight_statistics, with_joined_gates

LAYERS = ("unf", "unf-tied", "deepsets")
CELLS = ("gru", "lstm", "vanilla")


def written_by_hand(model, params):
    """The spec of a model: hidden units of encoder and decoder are one, the state being handed over."""

    def axes(path, leaf):
        cell, kind = path[0].key, path[1].key
        if cell == "out":
            return ("hidden", None) if kind == "kernel" else (None,)
        return {"input": (None, "hidden"), "recurrent": ("hidden", "hidden"), "bias": ("hidden",)}[kind]

    return make_spec(jax.tree_util.tree_map_with_path(axes, params), params)


def small(layer="unf", cell="vanilla", **settings):
    model = Seq2Seq(hidden=5, cell=cell)
    population = stack_models([model.init(key) for key in jax.random.split(jax.random.key(0), 6)])
    population = jax.tree.map(lambda x: x + 0.1 * np.random.default_rng(0).normal(size=x.shape), population)
    predictor = InvariantPredictor(model_spec(model), layer=layer, channels=3, depth=2, width=16, **settings)
    return model, population, predictor


def started(predictor, population):
    """The variables, and what is predicted for the models that they are normalized by."""
    return jax.jit(predictor.init_with_output)(jax.random.key(1), population)[::-1]


def permuted(spec, population, key):
    permutation = spec.random_permutation(key)
    return jax.vmap(lambda params: spec.permute(permutation, params))(population)


@pytest.mark.slow
@pytest.mark.parametrize("cell", CELLS)
def test_the_inferred_spec_is_that_written_by_hand(cell):
    model = Seq2Seq(hidden=5, cell=cell)
    params = model.init(jax.random.key(0))
    inferred, by_hand = model_spec(model), written_by_hand(model, params)
    (name,) = inferred.sizes
    for a, b in zip(inferred.leaves, by_hand.leaves, strict=True):
        assert a.path == b.path
        assert tuple("hidden" if axis == name else axis for axis in a.axes) == b.axes
    asked, answers = np.array([[1, 10, 2, 11]]), np.array([[3, 12]])
    check_spec(model.loss, inferred, params, asked, answers, key=jax.random.key(0))


@pytest.mark.slow
@pytest.mark.parametrize("layer", LAYERS)
def test_predictions_do_not_change_with_the_order_of_hidden_units(layer):
    _, population, predictor = small(layer)
    variables, before = started(predictor, population)
    assert before.shape == (6, 1)
    apply = jax.jit(predictor.apply)
    for seed in range(3):
        after = apply(variables, permuted(predictor.spec, population, jax.random.key(seed)))
        np.testing.assert_allclose(after, before, atol=2e-5)


@pytest.mark.slow
def test_predictions_change_where_the_function_does():
    model, population, predictor = small()
    variables, before = started(predictor, population)
    # The decoder's units alone: its first state is then another.
    order = np.array([2, 0, 1, 4, 3])
    decoder = population["decoder"]
    moved = {
        "input": {"new": decoder["input"]["new"][..., order]},
        "recurrent": {"new": decoder["recurrent"]["new"][:, order][:, :, order]},
        "bias": {"new": decoder["bias"]["new"][:, order]},
    }
    broken = {**population, "decoder": moved}
    broken["out"] = {**population["out"], "kernel": population["out"]["kernel"][:, order]}
    asked, answers = np.array([[1, 10, 2, 11]]), np.array([[3, 12]])
    losses = [jax.vmap(lambda p: model.loss(p, asked, answers))(some) for some in (population, broken)]
    assert np.all(np.abs(losses[0] - losses[1]) > 1e-5)
    assert np.all(np.abs(jax.jit(predictor.apply)(variables, broken) - before) > 1e-4)


def test_models_are_predicted_one_by_one():
    _, population, predictor = small()
    variables, together = started(predictor, population)
    apply = jax.jit(predictor.apply)
    for index in range(3):
        alone = apply(variables, jax.tree.map(lambda x: x[index : index + 1], population))  # noqa: B023
        np.testing.assert_allclose(alone[0], together[index], atol=1e-5)


@pytest.mark.slow
def test_the_scale_of_a_leaf_is_normalized_away():
    _, population, predictor = small("deepsets")
    expected = started(predictor, population)[1]
    population["out"]["kernel"] = 1000.0 * population["out"]["kernel"] + 5.0
    scaled = started(predictor, population)[1]
    np.testing.assert_allclose(scaled, expected, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["unf", "deepsets"])
def test_predictors_are_saved_and_loaded(layer, tmp_path):
    _, population, predictor = small(layer)
    if layer == "deepsets":
        predictor = predictor.clone(
            groups=("biases", "kernels", "recurrent", "biases", "kernels", "recurrent", "end", "out")
        )
    variables, expected = started(predictor, population)
    path = tmp_path / "predictor.safetensors"
    save_predictor(path, predictor, variables)
    loaded, read = load_predictor(path)
    assert loaded == predictor
    np.testing.assert_allclose(jax.jit(loaded.apply)(read, population), expected, atol=1e-6)


def test_bad_files_of_predictors_are_refused(tmp_path):
    _, population, predictor = small("deepsets")
    path = tmp_path / "predictor.safetensors"
    with pytest.raises(FileNotFoundError, match="A predictor must be a file"):
        load_predictor(path)
    save_predictor(path, predictor, started(predictor, population)[0])
    with safetensors.safe_open(path, "numpy") as file:
        metadata = file.metadata()
    arrays = safetensors.numpy.load_file(path)
    path.write_bytes(safetensors.numpy.save(arrays, {**metadata, "format": "other"}))
    with pytest.raises(ValueError, match="must hold a predictor in the format"):
        load_predictor(path)
    path.write_bytes(safetensors.numpy.save(arrays, {**metadata, "settings": json.dumps({"colour": 1})}))
    with pytest.raises(ValueError, match="must describe a predictor"):
        load_predictor(path)
    name = next(iter(sorted(arrays)))
    path.write_bytes(safetensors.numpy.save({k: x for k, x in arrays.items() if k != name}, metadata))
    with pytest.raises(ValueError, match=f"must hold {name!r}"):
        load_predictor(path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match="must be a safetensors file"):
        load_predictor(path)


def test_dropout_is_for_training_only():
    _, population, predictor = small("deepsets", dropout=0.5)
    variables, first = started(predictor, population)
    apply = jax.jit(predictor.apply)
    np.testing.assert_allclose(apply(variables, population), first, atol=1e-6)
    dropped = apply(variables, population, rngs={"dropout": jax.random.key(2)})
    assert np.any(np.abs(dropped - first) > 1e-4)


def test_statistics_are_those_of_numpy():
    rng = np.random.default_rng(0)
    w = rng.normal(size=(3, 4, 5)).astype(np.float32)
    found = weight_statistics({"w": w})
    expected = [[x.mean(), x.var(), *(np.sort(x.ravel())[[0, -1]])] for x in w]
    np.testing.assert_allclose(found[:, [0, 1, 2, 6]], expected, rtol=1e-4)
    np.testing.assert_allclose(found[:, 4], np.median(w.reshape(3, -1), axis=1), rtol=1e-5)


def test_scores():
    rng = np.random.default_rng(0)
    actual = rng.uniform(size=50)
    predicted = actual + 0.1 * rng.normal(size=50)
    found = score(predicted, actual)
    assert found.tau == kendalltau(actual, predicted).statistic
    assert found.r2 == pytest.approx(1 - np.mean((predicted - actual) ** 2) / np.var(actual))
    assert score(np.full(50, actual.mean()), actual).r2 == pytest.approx(0.0)


def test_fit_stops_where_validation_is_best():
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(60, 4)).astype(np.float32)
    rates = 1 / (1 + np.exp(-2 * inputs[:, 0])).astype(np.float32)
    parts = [(inputs[:40], rates[:40]), (inputs[40:50], rates[40:50])]
    fitted = fit(StatNN(width=16, layers=3), *parts, jax.random.key(0), FitConfig(learning_rate=1e-2, epochs=8))
    assert len(fitted.validation) == 8
    predicted = fitted.predict(inputs[40:50])
    losses = -(rates[40:50] * np.log(predicted) + (1 - rates[40:50]) * np.log(1 - predicted))
    assert np.mean(losses) == pytest.approx(min(fitted.validation), rel=1e-4)
    assert score(fitted.predict(inputs[50:]), rates[50:]).tau > 0.7
    again = fit(StatNN(width=16, layers=3), *parts, jax.random.key(0), FitConfig(learning_rate=1e-2, epochs=8))
    np.testing.assert_array_equal(again.predict(inputs), fitted.predict(inputs))


def tiny_zoo(hidden=4, cell="vanilla", models=120):
    """Models whose success is how large their output kernel is."""
    config = ZooConfig(hidden=hidden, cell=cell)
    rng = np.random.default_rng(hidden)
    scale = rng.uniform(0.2, 1.0, models).astype(np.float32)
    model = Seq2Seq(hidden, cell)
    params = jax.vmap(model.init)(jax.random.split(jax.random.key(hidden), models), jnp.ones(models))
    params["out"]["kernel"] *= scale[:, None, None]
    records = {"success_rate": scale, "learning_rate": scale, "steps": np.ones(models, np.float32)}
    return Zoo(config, jax.device_get(params), records)


def test_splits_are_apart_and_nested():
    zoo = tiny_zoo(models=60)
    parts = split(zoo, 48, seed=1)
    rates = [part.success_rate for part in parts]
    assert [len(x) for x in rates] == [48, 6, 6]
    assert len(np.unique(np.concatenate(rates))) == 60
    np.testing.assert_array_equal(split(zoo, 20, seed=1)[0].success_rate, rates[0][:20])
    with pytest.raises(ValueError, match=r"has 48 to train on besides a tenth each .* but 49 are asked for"):
        split(zoo, 49, seed=1)


@pytest.mark.slow
def test_a_predictor_fits_another_size():
    zoo = tiny_zoo(models=60)
    train, validation, test = split(zoo, 48, seed=0)
    _, predict = fit_predictor("unf", train, validation, 0, FitConfig(epochs=2), channels=2, depth=1, width=16)
    larger = tiny_zoo(hidden=7, models=10)
    assert predict(test).shape == (6,)
    assert predict(larger).shape == (10,)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unf-tied", "deepsets", "statnn", "trees"])
def test_a_predictor_of_joined_gates_fits_another_cell(name):
    zoo, other = tiny_zoo(models=60), tiny_zoo(cell="lstm", models=10)
    train, validation, _ = split(zoo, 48, seed=0)
    settings = {"unf-tied": {"channels": 2, "depth": 1, "width": 16}, "deepsets": {"channels": 2, "width": 16}}
    config = FitConfig(epochs=2)
    _, predict = fit_predictor(name, train, validation, 0, config, join_gates=True, **settings.get(name, {}))
    rates = predict(other)
    assert rates.shape == (10,)
    # Gates that do the same in another order: which is which is forgotten.
    swapped = {
        cell: {
            kind: {**part, "write": part["read"], "read": part["write"]} if isinstance(part, dict) else part
            for kind, part in parts.items()
        }
        for cell, parts in other.params.items()
    }
    np.testing.assert_allclose(predict(dataclasses.replace(other, params=swapped)), rates, atol=1e-5)


def test_joined_gates_are_the_cells_of_other_libraries():
    params = tiny_zoo(hidden=4, cell="lstm", models=3).params
    joined = with_joined_gates(params)
    assert joined["encoder"]["recurrent"].shape == (3, 4, 16)
    np.testing.assert_array_equal(joined["decoder"]["input"][..., :4], params["decoder"]["input"]["forget"])
    np.testing.assert_array_equal(joined["out"]["kernel"], params["out"]["kernel"])


def test_a_group_of_leaves_is_normalized_and_pooled_as_one():
    rng = np.random.default_rng(0)
    a, b, c = rng.normal(size=(3, 5, 4)) * np.array([1.0, 3.0, 1.0])[:, None, None]
    spec = make_spec({"a": ("x",), "b": ("y",), "c": ("z",)}, {"a": a[0], "b": b[0], "c": c[0]})
    predictor = InvariantPredictor(spec, layer="deepsets", depth=0, groups=("one", "one", "two"))
    variables = predictor.init(jax.random.key(0), {"a": a, "b": b, "c": c})
    found = variables["normalization"]
    joined = np.concatenate([a, b])
    np.testing.assert_allclose(found["mean"], [joined.mean(), c.mean()], atol=1e-6)
    np.testing.assert_allclose(found["std"], [joined.std(), c.std()], rtol=1e-5)
    together = (np.concatenate([a, b], axis=1) - joined.mean()) / joined.std()
    alone = (c - c.mean()) / c.std()
    # Once of the weights, once of the last layer, which here is the same.
    columns = 2 * [together.mean(1), alone.mean(1), (together**2).mean(1), (alone**2).mean(1)]
    np.testing.assert_allclose(found["pooled_mean"], [x.mean() for x in columns], atol=1e-6)
    np.testing.assert_allclose(found["pooled_std"], [x.std() for x in columns], rtol=1e-4)


def test_groups_refused():
    spec = make_spec({"w": ("x", "x"), "b": ("x",)}, {"w": np.ones((3, 3)), "b": np.ones(3)})
    with pytest.raises(ValueError, match="each of the spec's 2 leaves, but name 1"):
        InvariantPredictor(spec, groups=("all",))
    with pytest.raises(ValueError, match=r"in group 'all' 'b' has 1 and 'w' 2\. Give leaves of other axes"):
        InvariantPredictor(spec, groups=("all", "all"))


@pytest.mark.slow
def test_other_cells_are_tested_on_by_what_fits_them():
    zoo, others = tiny_zoo(), {"gates": tiny_zoo(cell="gru", models=10)}
    with pytest.raises(ValueError, match=r"'gates' must have cells with the gates of those trained on, vanilla"):
        next(run(zoo, ["trees"], [96], [0], others=others))
    with pytest.raises(ValueError, match="must not be called 'test'"):
        next(run(zoo, ["trees"], [96], [0], others={"test": zoo}))
    (home, other) = run(zoo, ["trees"], [96], [0], others=others, join_gates=True)
    assert [(r.tested_on, r.join_gates) for r in (home, other)] == [("test", True), ("gates", True)]
    assert not fits("unf", "vanilla", "gru", join_gates=True)
    apart = dataclasses.replace(home, join_gates=False)
    assert "## Gates joined" in page(zoo, [home, other], {})
    assert "## Gates joined" not in page(zoo, [apart], {})


@pytest.mark.slow
def test_the_experiment_goes_on_and_has_a_page(tmp_path):
    zoo = tiny_zoo()
    results = list(run(zoo, ["trees"], [60, 96], [0, 1], others={"larger": tiny_zoo(hidden=6, models=10)}))
    assert [(r.train, r.seed, r.tested_on) for r in results if r.seed == 0] == [
        (60, 0, "test"),
        (96, 0, "test"),
        (96, 0, "larger"),
    ]
    path = tmp_path / "results.jsonl"
    write_results(path, results[:2])
    known = read_results(path)
    assert known == results[:2]
    rest = list(run(zoo, ["trees"], [60, 96], [0, 1], known=known))
    assert [(r.train, r.seed) for r in rest] == [(60, 1), (96, 1)]
    text = write_page(tmp_path, zoo, results, {"command": "optax-unf zoo train", "versions": {"jax": "0"}})
    mean, error = mean_and_error([r.tau for r in results if r.train == 96 and r.tested_on == "test"])
    assert f"| boosted trees on statistics | 96 | {mean:.3f} ± {error:.3f} |" in text
    assert "## Tested on larger, never seen" in text
    better = [dataclasses.replace(r, predictor="unf", tau=r.tau + 0.1) for r in results]
    assert "| UNF |  | +0.100 ± 0.000 |" in write_page(tmp_path, zoo, [*results, *better], {})
    for name in ("rates", "scatter", "sizes"):
        assert (tmp_path / f"zoo-{name}.png").stat().st_size > 1000
    path.write_text("{}\n")
    with pytest.raises(ValueError, match="must hold results of predictors"):
        read_results(path)
    with pytest.raises(ValueError, match="A page needs results"):
        write_page(tmp_path, zoo, [], {})
