"""The instrument: suites, contenders, runs, records, the page and the command."""

import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_unf.cli.program import main
from optax_unf.compare import Contender, Records, candidate, measure, suite
from optax_unf.compare.contenders import ADAM, BASELINES, MUON, UNTUNED_ADAM
from optax_unf.compare.records import bundled
from optax_unf.compare.runs import LANES, TUNING_SEEDS
from optax_unf.compare.speed import final_loss, grid
from optax_unf.compare.summary import speed_ups, summarize, task_speed_up
from optax_unf.compare.sweep import Settings, sweep
from optax_unf.meta.fresh import fresh_keys

STEPS = 30
needs_data = pytest.mark.skipif("OPTAX_UNF_DATA" not in os.environ, reason="needs a folder with the data files")


def _table_task(horizon: int = STEPS):
    return dataclasses.replace(suite.get("unseen", "classification"), horizon=horizon)


def _sgd(steps, factor=1.0):
    return optax.sgd(0.1 * factor)


@pytest.mark.slow
def test_a_run_is_the_loop_that_anyone_would_write():
    task = _table_task()
    record = measure(Contender("sgd", lambda rate, steps, task: optax.sgd(rate), setting=0.3), task, seeds=2)
    for seed, key in enumerate(fresh_keys(2)):
        init_key, batch_key = jax.random.split(key)
        params, losses = task.init(init_key), []
        for step in range(STEPS):
            loss, grads = jax.value_and_grad(task.loss)(params, task.sample(jax.random.fold_in(batch_key, step)))
            losses.append(float(loss))
            params = jax.tree.map(lambda p, g: p - 0.3 * g, params, grads)
        np.testing.assert_allclose(record.start[seed], losses[0], rtol=1e-5)
        np.testing.assert_allclose(record.final[seed], np.mean(losses[-2:]), rtol=1e-4)
        np.testing.assert_allclose(record.held_out[seed], task.loss(params, task.held_out()), rtol=1e-4)
    assert record.curves.shape == (2, len(grid(STEPS)))


def test_tuning_takes_the_best_rate_and_widens_a_grid_whose_best_is_at_its_edge():
    task = _table_task()
    contender = Contender("sgd", lambda rate, steps, task: optax.sgd(rate), middle=1e-3)
    record = measure(contender, task, seeds=2)
    settings = [setting for setting, _ in record.tuning]
    losses = dict(record.tuning)
    assert len(settings) > LANES
    assert settings[0] < record.setting < settings[-1]
    assert record.setting == min(losses, key=lambda setting: losses[setting])
    assert TUNING_SEEDS == 2


@pytest.mark.slow
def test_runs_of_all_contenders_pair_seed_by_seed():
    task = _table_task()
    adam, muon = (measure(dataclasses.replace(c, middle=None, setting=0.01), task, seeds=3) for c in (ADAM, MUON))
    assert adam.pairs_with(muon)
    other = dataclasses.replace(muon, start=muon.start * 1.1)
    assert not adam.pairs_with(other)
    with pytest.raises(ValueError, match="must be of the same runs"):
        speed_ups(adam, other)


@pytest.mark.slow
def test_divergence_is_counted():
    task = _table_task()
    blow_up = Contender("worse", lambda rate, steps, task: optax.sgd(rate * jnp.inf))
    fixed = [dataclasses.replace(c, middle=None, setting=0.01) for c in (UNTUNED_ADAM, ADAM, MUON)]
    records = Records(measure(contender, task, seeds=2) for contender in (*fixed, blow_up))
    row = summarize(records, "worse", [task.name])
    assert row is not None
    assert (row.diverged, row.runs, row.behind_untuned) == (2, 2, 1)
    assert row.over[ADAM.name][0] == pytest.approx(1 / 20)
    assert summarize(records, ADAM.name, [task.name]).over[ADAM.name][0] == 1.0
    assert task_speed_up(records, task.name, "nobody", ADAM.name) is None


@pytest.mark.slow
def test_what_is_known_is_not_run_again_and_what_changed_is():
    known = Records()
    fixed = [dataclasses.replace(c, middle=None, setting=0.01) for c in (UNTUNED_ADAM, ADAM)]
    two = Settings(seeds=2)
    first = list(sweep([_table_task], [Contender("sgd", _make_sgd)], known, baselines=fixed, settings=two))
    assert [record.contender for record in first] == ["sgd", UNTUNED_ADAM.name, ADAM.name]
    for record in first:
        known.add(record)
    assert list(sweep([_table_task], [Contender("sgd", _make_sgd)], known, baselines=fixed, settings=two)) == []
    # A new candidate on a changed task: the baselines no longer pair with it.
    changed = list(
        sweep([lambda: _table_task(2 * STEPS)], [Contender("new", _make_sgd)], known, baselines=fixed, settings=two)
    )
    assert [record.contender for record in changed] == ["new", UNTUNED_ADAM.name, ADAM.name]


def _make_sgd(rate, steps, task):
    return optax.sgd(0.1)


def test_records_come_back_from_a_file(tmp_path):
    task = _table_task()
    record = measure(dataclasses.replace(ADAM, setting=0.01, middle=None), task, seeds=2, made={"commit": "abc"})
    record = dataclasses.replace(record, tuning=((0.1, 2.0), (0.2, np.inf)), relative_seconds=1.5)
    Records([record]).write(tmp_path / "records.npz")
    (found,) = Records.read(tmp_path / "records.npz")
    for field in dataclasses.fields(record):
        a, b = getattr(record, field.name), getattr(found, field.name)
        np.testing.assert_allclose(a, b, rtol=2**-13) if isinstance(a, np.ndarray) else None
        assert isinstance(a, np.ndarray) or a == b
    assert len(Records.read(tmp_path / "none.npz")) == 0
    (tmp_path / "other.npz").write_text("nothing of the kind")
    with pytest.raises(ValueError, match="must hold records"):
        Records.read(tmp_path / "other.npz")


@pytest.mark.slow
@pytest.mark.data
@needs_data
@pytest.mark.parametrize("name", suite.SUITES["unseen"])
def test_tasks_of_the_unseen_suite_can_be_traced(name):
    _check_task(suite.get("unseen", name))


@pytest.mark.slow
@pytest.mark.data
@needs_data
@pytest.mark.parametrize("name", [name for i, name in enumerate(suite.SUITES["probe"]) if i % 2])
def test_tasks_of_the_probe_suite_can_be_traced(name):
    _check_task(suite.get("probe", name))


@pytest.mark.slow
@pytest.mark.data
@needs_data
def test_tasks_of_the_stress_suite_are_what_they_say():
    tasks = {name: suite.get("stress", name) for name in suite.STRESS}
    params = {name: jax.eval_shape(task.init, jax.random.key(0)) for name, task in tasks.items()}
    for name, task in tasks.items():
        batch = jax.eval_shape(task.sample, jax.random.key(0))
        assert jax.eval_shape(task.loss, params[name], batch).shape == ()
    horizons = {name: task.horizon for name, task in tasks.items()}
    assert (min(horizons, key=horizons.get), max(horizons, key=horizons.get)) == ("short", "long")
    assert {x.dtype for x in jax.tree.leaves(params["bfloat16"])} == {jnp.dtype(jnp.bfloat16)}
    small, large = (tasks[f"{size}-weights"].init(jax.random.key(0)) for size in ("small", "large"))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(100 * x, y, rtol=1e-6), small, large)


def _check_task(task):
    key = jax.random.key(0)
    params, batch = jax.eval_shape(task.init, key), jax.eval_shape(task.sample, key)
    loss, grads = jax.eval_shape(jax.value_and_grad(task.loss), params, batch)
    assert loss.shape == jax.eval_shape(task.loss, params, task.held_out()).shape == ()
    assert jax.tree.map(lambda x: x.shape, grads) == jax.tree.map(lambda x: x.shape, params)
    assert 200 <= task.horizon <= 10_000


def test_the_suites_are_as_large_as_they_should_be_and_apart():
    assert len(suite.UNSEEN) >= 14
    assert len(suite.PROBE) == 24
    for name, tasks in suite.QUICK.items():
        assert len(tasks) == (6 if name == "stress" else 8)
        assert set(tasks) <= set(suite.SUITES[name])
    with pytest.raises(ValueError, match="must be one of linear"):
        suite.get("unseen", "nope")


@pytest.mark.slow
@pytest.mark.parametrize("contender", BASELINES, ids=lambda c: c.name)
def test_baselines_learn(contender):
    task = _table_task(100)
    record = measure(dataclasses.replace(contender, middle=None, setting=contender.middle or 1.0), task, seeds=1)
    assert record.final[0] < record.start[0]


@pytest.mark.slow
def test_meta_weights_and_functions_are_candidates(tmp_path):
    task = _table_task()
    (tmp_path / "mine.py").write_text(
        "import optax\ndef make(total_steps, factor=1.0):\n    return optax.sgd(0.1 * factor)\n"
    )
    own = candidate(f"{tmp_path}/mine.py:make", setting=3.0)
    assert own.name.endswith("mine.py:make x 3")
    plain = Contender("sgd", lambda rate, steps, task: optax.sgd(rate), setting=0.3)
    np.testing.assert_allclose(measure(own, task, seeds=1).final, measure(plain, task, seeds=1).final, rtol=1e-5)
    for source in ("mlp-fashion-mnist-sgdm", "optax_unf:orthogonal_prodigy"):
        record = measure(candidate(source, spec="inferred"), task, seeds=1)
        assert record.final[0] < record.start[0]
    with pytest.raises(ValueError, match="must take an argument spec"):
        candidate(f"{tmp_path}/mine.py:make", spec="inferred")
    for wrong in ("nowhere:make", "optax:nothing", f"{tmp_path}/none.py:make"):
        with pytest.raises(ValueError, match="module:attribute"):
            candidate(wrong)


@pytest.mark.slow
def test_the_bundled_baselines_are_of_the_tasks_as_they_are():
    known = bundled()
    assert set(known.contenders()) == {contender.name for contender in BASELINES}
    assert {*suite.UNSEEN, *suite.PROBE} <= set(known.tasks()) <= {*suite.UNSEEN, *suite.PROBE, *suite.STRESS}
    for suite_name, task in (("unseen", "classification"), ("probe", "teacher-500")):
        fresh = measure(Contender("sgd", _make_sgd), suite.get(suite_name, task), seeds=2)
        assert all(fresh.pairs_with(known.get(task, contender.name)) for contender in BASELINES)
    for contender in BASELINES:
        for task in known.tasks():
            record = known.get(task, contender.name)
            assert record.seeds == LANES
            if contender.grid:
                settings = [setting for setting, _ in record.tuning]
                assert len(settings) >= 7
                assert settings[0] < record.setting < settings[-1]


def test_final_loss_of_seeds_is_infinite_where_not_finite():
    losses = np.ones((2, 40))
    losses[1, -1] = np.nan
    np.testing.assert_array_equal(final_loss(losses), [1.0, np.inf])


@pytest.mark.slow
def test_the_command_measures_an_own_optimizer_on_an_own_task(tmp_path, capsys):
    (tmp_path / "own_parabola.py").write_text(
        "import jax, jax.numpy as jnp, optax\n"
        "class Parabola:\n"
        "    horizon = 20\n"
        "    def init(self, key): return {'x': jax.random.normal(key, (3,))}\n"
        "    def sample(self, key): return jax.random.normal(key, (3,))\n"
        "    def loss(self, params, batch): return jnp.sum((params['x'] - 0.1 * batch) ** 2) + 1.0\n"
        "    def held_out(self): return jnp.zeros(3)\n"
        "def make(total_steps): return optax.sgd(0.2)\n"
    )
    arguments = [f"{tmp_path}/own_parabola.py:make", "--task", f"{tmp_path}/own_parabola.py:Parabola"]
    main(["suite", *arguments, "--seeds", "2", "--timed", "--out", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert "over Adam, cosine" in printed
    page = (tmp_path / "out" / "own.md").read_text()
    assert "Parabola" in page
    assert "Prodigy" in page
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "records.npz",
        "own.md",
        "own.json",
        "own-profile.png",
        "own-curves.png",
    }
    main(["suite", *arguments, "--seeds", "2", "--out", str(tmp_path / "out")])
    assert "final loss" not in capsys.readouterr().out  # nothing is run again
    with pytest.raises(SystemExit, match="--seeds must be 1 to 7"):
        main(["suite", *arguments, "--seeds", "8"])
    (tmp_path / "no_task.py").write_text("class Nothing:\n    horizon = 3\n")
    with pytest.raises(SystemExit, match="must have init, sample and loss"):
        main(["suite", "--task", f"{tmp_path}/no_task.py:Nothing", "--out", str(tmp_path / "out2")])
