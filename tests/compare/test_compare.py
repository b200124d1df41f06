"""The comparison of optimizers: tuning, losses, steps to a target, tables and pictures."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import optax
import pytest

from optax_unf import load_weights, tasks
from optax_unf.compare.baselines import Baseline, tune
from optax_unf.compare.optimizers import compare_optimizers, steps_to_reach
from optax_unf.compare.plot import plot_comparisons
from optax_unf.compare.results import Comparison, Curve, Result, read_comparison, read_comparisons, write_comparison
from optax_unf.compare.table import markdown_page
from optax_unf.meta.fresh import fresh_keys

MADE = {"command": "optax-unf compare", "commit": "", "date": "2026-01-01", "machine": "one", "versions": {"jax": "1"}}


class Parabola:
    """The gradient of x^2 / 2 is x: SGD of rate 1 is at the minimum after one step."""

    def init(self, key):
        return jax.random.normal(key, (2,))

    def sample(self, key):
        return jnp.zeros(2)

    def loss(self, params, batch):
        return 0.5 * jnp.sum((params - batch) ** 2)

    def held_out(self):
        return jnp.ones(2)


class Broken(Parabola):
    def loss(self, params, batch):
        return super().loss(params, batch) * jnp.nan


def sgd(middle):
    return Baseline("SGD", lambda rate, steps: optax.sgd(rate), middle)


def result(name, losses, *, learned=False, validation=None, steps_to_adam=None):
    steps = (50, 60)
    curve = Curve(steps, (losses[0],) * 2, (0.1,) * 2)
    return Result(name, learned, {}, losses, validation or losses, 0.5, steps_to_adam, curve)


@pytest.mark.parametrize(("middle", "beyond"), [(2.0**-6, [0.5, 1.0, 2.0]), (2.0**6, [2.0, 1.0, 0.5]), (1.0, [])])
def test_a_grid_grows_until_its_best_rate_is_inside(middle, beyond):
    baseline = sgd(middle)
    losses = tune(baseline, Parabola(), steps=60)
    assert len(baseline.rates) == 9
    assert min(losses, key=losses.get) == 1.0
    assert list(losses) == sorted({*baseline.rates, *beyond})
    # x is (1 - rate)^t of what it was.
    assert losses[1.0] == 0
    assert losses[2.0] > 0


def test_an_optimizer_that_diverges_at_every_rate_is_an_error():
    with pytest.raises(ValueError, match="best rate of SGD must lie inside a grid"):
        tune(sgd(1.0), Broken(), steps=2)


@pytest.mark.slow
def test_losses_are_those_of_a_plain_optax_loop():
    task, steps, seeds = tasks.get("mlp-digits"), 60, 2
    adam, learned = compare_optimizers(
        task, {"S": load_weights("mlp-fashion-mnist-sgdm")}, steps=steps, seeds=seeds, baselines=()
    )
    optimizer = optax.adam(adam.rate)

    @jax.jit
    def train_step(params, state, key):
        batch = task.sample(key)
        loss, grads = jax.value_and_grad(task.loss)(params, batch)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, loss

    curves = []
    for seed, key in enumerate(fresh_keys(seeds)):
        init_key, batch_key = jax.random.split(key)
        params = task.init(init_key)
        state = optimizer.init(params)
        losses = []
        for step in range(steps):
            params, state, loss = train_step(params, state, jax.random.fold_in(batch_key, step))
            losses.append(float(loss))
        np.testing.assert_allclose(adam.training_loss[seed], np.mean(losses[-50:]), rtol=1e-3)
        np.testing.assert_allclose(adam.validation_loss[seed], task.loss(params, task.held_out()), rtol=1e-2)
        curves.append(losses)
    end = np.mean(curves, axis=0)[-50:]
    np.testing.assert_allclose(adam.curve.mean[-1], end.mean(), rtol=1e-3)
    assert adam.curve.step[-1] == steps
    assert adam.steps_to_adam <= steps
    assert learned.learned
    assert (learned.rate, learned.tuning) == (None, ())
    assert adam.seconds_per_step > 0

    # The same numbers in the table, by hand.
    page = markdown_page(Comparison("mlp-digits", "", steps, seeds, (adam, learned), MADE))
    mean, error = np.mean(adam.training_loss), abs(adam.training_loss[0] - adam.training_loss[1]) / 2
    gaps = np.subtract(adam.training_loss, learned.training_loss)
    row = next(line for line in page.splitlines() if line.startswith("| Adam"))
    assert f"| {mean:.4f} ± {error:.4f} |" in row
    assert f"| {gaps.mean():.4f} ± {abs(gaps[0] - gaps[1]) / 2:.4f} |" in row
    assert f"| {adam.steps_to_adam} |" in row


def test_known_results_are_taken_over_only_with_equal_settings():
    task = Parabola()
    (adam,) = compare_optimizers(task, {}, steps=4, seeds=2, baselines=())
    marked = dataclasses.replace(adam, validation_loss=(123.0, 123.0))
    (again,) = compare_optimizers(task, {}, steps=4, seeds=2, baselines=(), known=[marked])
    assert again == dataclasses.replace(marked, seconds_per_step=again.seconds_per_step)
    (other,) = compare_optimizers(task, {}, steps=5, seeds=2, baselines=(), known=[marked])
    assert other.validation_loss != marked.validation_loss


def test_steps_to_reach_is_the_first_window_at_the_target():
    losses = np.random.default_rng(0).exponential(size=(3, 200)) + np.linspace(2, 0, 200)
    mean = losses.mean(0)
    for target in (3.5, 2.0, 1.5, 0.5):
        expected = next((t for t in range(50, 201) if mean[t - 50 : t].mean() <= target), None)
        assert steps_to_reach(losses, target) == expected
    assert steps_to_reach(losses, 0.5) is None
    diverged = np.where(np.arange(200) < 150, losses, np.nan)
    assert steps_to_reach(diverged, 3.5) is None


@pytest.mark.parametrize(
    ("task", "arguments", "message"),
    [
        (Parabola(), {"seeds": 1, "steps": 2}, "at least two seeds"),
        (Parabola(), {}, "attribute horizon"),
        (tasks.Rescaled(Parabola()), {"steps": 2}, "held_out"),
        (Parabola(), {"steps": 2, "learned": "mlp-fashion-mnist-unf"}, "fit only the weight space"),
    ],
)
def test_what_cannot_be_compared_is_refused(task, arguments, message):
    learned = {name: load_weights(arguments[name]) for name in arguments if name == "learned"}
    rest = {name: value for name, value in arguments.items() if name != "learned"}
    with pytest.raises(ValueError, match=message):
        next(compare_optimizers(task, learned, **rest))


def test_results_survive_the_file_and_runs_that_diverged_are_shown(tmp_path):
    unf = result("UNF", (0.5, 0.7), learned=True, steps_to_adam=40)
    bad = dataclasses.replace(
        result("SGDM", (1.0, math.inf)), rate=0.2, tuning=((0.1, 1.5), (0.2, 1.0), (0.4, math.inf)),
        settings={"grid": [0.1, 0.2], "tuning_seeds": 3},
    )  # fmt: skip
    comparison = Comparison("some-task", "sizes", 60, 2, (bad, unf), MADE)
    path = write_comparison(tmp_path, comparison)
    assert read_comparison(path) == comparison
    assert [file.name for file in tmp_path.iterdir()] == ["some-task.json"]
    rows = [line for line in markdown_page(comparison).splitlines() if line.startswith("| ")]
    assert rows[1:] == [
        "| --- | --- | --- | --- | --- | --- |",
        "| UNF | 0.6000 ± 0.1000 | 0.6000 ± 0.1000 | - | 40 | 20 |",
        "| SGDM (rate 0.2) | diverged (1 of 2) | diverged (1 of 2) | - | - | - |",
    ]
    assert "2 rates from 0.1 to 0.2, and 0.4 beyond the end of the grid" in markdown_page(comparison)
    assert "training loss above UNF" in rows[0]


def test_the_figure_has_a_panel_for_each_task(tmp_path):
    for task in ("one", "two", "three"):
        comparison = Comparison(
            task, "", 60, 2, (result("UNF", (0.5, 0.7), learned=True), result("Adam", (math.inf, 1.0))), MADE
        )
        write_comparison(tmp_path, comparison)
    (tmp_path / "other.json").write_text('{"format": "something else"}')
    figure = plot_comparisons(read_comparisons(tmp_path))
    shown = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title() for axes in shown] == ["one (2 seeds)", "three (2 seeds)", "two (2 seeds)"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["UNF", "Adam"]
    np.testing.assert_allclose(shown[0].lines[0].get_ydata(), 0.5)
    figure.savefig(tmp_path / "figure.png")
    assert matplotlib.image.imread(tmp_path / "figure.png").std() > 0.01


def test_a_figure_of_nothing_is_an_error():
    with pytest.raises(ValueError, match=r"at least one comparison, .* but there are none. compare_optimizers"):
        plot_comparisons([])
    whole, empty = Comparison("one", "", 60, 2, (result("UNF", (0.5,)),), MADE), Comparison("two", "", 60, 2, (), MADE)
    with pytest.raises(ValueError, match="results in each, but there are 1 of one, 0 of two"):
        plot_comparisons(iter([whole, empty]))


def test_a_folder_without_results_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="optax-unf compare"):
        read_comparisons(tmp_path)
