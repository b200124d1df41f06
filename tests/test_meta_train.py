"""The outer loop: it learns, resumes exactly, and does not depend on the number of devices."""

import json
import subprocess
import sys
from typing import ClassVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_unf import OptimizerConfig, make_spec, unf
from optax_unf.meta import (
    PES,
    Backprop,
    MetaTrainConfig,
    Stage,
    Training,
    final_loss,
    learned_training,
    meta_train,
    training_losses,
)
from optax_unf.meta import train as train_module
from optax_unf.tasks import task_spec


class Regression:
    """Noisy linear regression, small enough to meta-train on in a test."""

    axes: ClassVar = {"w": ("out", "in"), "b": ("out",)}

    def init(self, key):
        return {"w": 0.1 * jax.random.normal(key, (2, 3)), "b": jnp.zeros(2)}

    def sample(self, key):
        x_key, noise_key = jax.random.split(key)
        x = jax.random.normal(x_key, (8, 3))
        return x, x @ jnp.array([[1.0, 2.0], [0.0, -1.0], [3.0, 0.5]]) + 0.1 * jax.random.normal(noise_key, (8, 2))

    def loss(self, params, batch):
        x, y = batch
        return jnp.mean((x @ params["w"].T + params["b"] - y) ** 2)


SMALL = OptimizerConfig(hidden_channels=8, hidden_layers=2)
TWO_STAGES = MetaTrainConfig(
    (
        Stage(Backprop(runs=4, truncation=5), steps=6, learning_rate=1e-2, schedule="cosine", warmup=2),
        Stage(PES(pairs=2, truncation=10), steps=5, learning_rate=1e-3),
    ),
    horizon=20,
    evaluate_every=2,
    evaluate_runs=2,
    checkpoint_every=2,
)


def run(config, **kwargs):
    return meta_train(SMALL, Regression(), config, jax.random.key(0), progress=False, **kwargs)


def test_backprop_then_pes_beats_the_initial_weights():
    config = MetaTrainConfig(
        (
            Stage(Backprop(runs=8, truncation=20), steps=60, learning_rate=1e-2, warmup=5),
            Stage(PES(pairs=8, truncation=20), steps=20, learning_rate=1e-3),
        ),
        horizon=40,
        evaluate_every=10,
        evaluate_runs=4,
    )
    result = run(config)
    problem = learned_training(SMALL, Regression())
    keys = jax.random.split(jax.random.key(99), 8)
    before = final_loss(training_losses(problem, run_initial().theta, keys, 40)).mean()
    after = final_loss(training_losses(problem, result.weights.theta, keys, 40)).mean()
    assert after < 0.5 * before


def run_initial():
    return meta_train(
        SMALL,
        Regression(),
        MetaTrainConfig((Stage(PES(pairs=1, truncation=1), 1, 1e-12),), horizon=1, evaluate_runs=1),
        jax.random.key(0),
        progress=False,
    ).last


def test_the_best_weights_are_kept(whole):
    result = whole
    losses = [record["final_loss"] for record in result.curve]
    assert [record["step"] for record in result.curve] == [2, 4, 6, 8, 10, 11]
    eval_key = jax.random.split(jax.random.key(0), 3)[1]
    problem = learned_training(SMALL, Regression())
    again = training_losses(problem, result.weights.theta, jax.random.split(eval_key, 2), 20)
    np.testing.assert_allclose(final_loss(again).mean(), min(losses), rtol=1e-5)


@pytest.fixture(scope="module")
def whole():
    return run(TWO_STAGES)


@pytest.mark.parametrize("stop_after", [3, 6, 9])
def test_a_stopped_run_resumes_exactly(tmp_path, monkeypatch, whole, stop_after):

    class KilledError(Exception):
        pass

    def update(self, step, metrics, curve):
        if step == stop_after:
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(train_module.Progress, "update", update)
        with pytest.raises(KilledError):
            run(TWO_STAGES, out=tmp_path)
    resumed = run(TWO_STAGES, out=tmp_path)
    chex.assert_trees_all_equal(resumed.last, whole.last)
    chex.assert_trees_all_equal(resumed.weights, whole.weights)
    assert resumed.curve == whole.curve


def test_a_finished_run_is_not_run_again(tmp_path):
    first = run(TWO_STAGES, out=tmp_path)
    second = run(TWO_STAGES, out=tmp_path)
    chex.assert_trees_all_equal(first.weights, second.weights)
    assert second.seconds == first.seconds


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    run(TWO_STAGES, out=tmp_path)
    other = MetaTrainConfig(TWO_STAGES.stages, horizon=40)
    with pytest.raises(ValueError, match="its horizon is 20, not 40"):
        run(other, out=tmp_path)


@pytest.mark.parametrize("damage", [b"", b"half a file", None])
def test_a_damaged_checkpoint_is_refused(tmp_path, damage):
    run(TWO_STAGES, out=tmp_path)
    file = tmp_path / "checkpoint.safetensors"
    file.write_bytes(file.read_bytes()[:-100] if damage is None else damage)
    with pytest.raises(ValueError, match=r"checkpoint\.safetensors is not a checkpoint"):
        run(TWO_STAGES, out=tmp_path)


def test_nothing_but_the_checkpoint_is_written(tmp_path):
    run(TWO_STAGES, out=tmp_path / "new" / "folder")
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["checkpoint.safetensors"]


def test_the_outer_step_compiles_once_a_stage():
    problem = learned_training(SMALL, Regression())
    traced = []

    class Counting(Training):
        def step(self, theta, run):
            traced.append(1)
            return super().step(theta, run)

    counting = Counting(problem.task, problem.optimizer)
    stage = TWO_STAGES.stages[0]
    state = train_module._start_stage(counting, TWO_STAGES, jax.random.key(0), 0, run_initial().theta)
    shardings = train_module._shardings(state)
    state = jax.device_put(state, shardings)
    step = train_module._outer_step(counting, TWO_STAGES, stage, shardings)
    state, _ = step(state, jax.random.key(0))
    first = len(traced)
    for n in range(3):
        state, _ = step(state, jax.random.key(n))
    assert len(traced) == first


_ON_DEVICES = """
import sys
from typing import ClassVar
import jax
jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
import json
import numpy as np
sys.path.insert(0, sys.argv[2])
from test_meta_train import SMALL, TWO_STAGES, Regression
from optax_unf.meta import learned_training
from optax_unf import init_weights
from optax_unf.tasks import task_spec
problem = learned_training(SMALL, Regression())
theta = init_weights(SMALL, task_spec(Regression()), jax.random.key(3)).theta
out = []
for stage in TWO_STAGES.stages:
    estimator = stage.estimator
    state = jax.jit(lambda: estimator.init(problem, 20, theta, jax.random.key(1)))()
    step = jax.jit(lambda s, k: estimator.estimate(problem, 20, theta, s, k))
    for n in range(3):
        grad, state, _ = step(state, jax.random.key(n))
        out += [np.asarray(x).ravel().tolist() for x in jax.tree.leaves(grad)]
print(json.dumps(out))
"""


def test_gradients_do_not_depend_on_the_number_of_devices(request):
    folder = str(request.path.parent)
    one, four = (
        [
            np.array(x)
            for x in json.loads(
                subprocess.run(
                    [sys.executable, "-c", _ON_DEVICES, str(n), folder], check=True, capture_output=True, text=True
                ).stdout
            )
        ]
        for n in (1, 4)
    )
    for a, b in zip(one, four, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * (1 + np.abs(a).max()))


def test_theta_may_be_a_learning_rate():
    problem = Training(Regression(), optax.sgd)
    losses = training_losses(problem, jnp.float32(0.1), jax.random.split(jax.random.key(0), 3), 50)
    assert losses.shape == (3, 50)
    assert losses[:, -5:].mean() < 0.1 * losses[:, 0].mean()


def test_optimizers_with_equal_keys_see_equal_batches():
    spec = make_spec(Regression.axes, Regression().init(jax.random.key(0)))
    assert spec == task_spec(Regression())
    weights = run_initial()
    frozen = Training(Regression(), lambda theta: optax.set_to_zero())
    learned = Training(Regression(), lambda theta: unf(weights, learning_rate=0.0))
    keys = jax.random.split(jax.random.key(0), 2)
    a, b = (training_losses(problem, jnp.zeros(()), keys, 5) for problem in (frozen, learned))
    np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MetaTrainConfig(stages=()), "at least one stage"),
        (lambda: MetaTrainConfig(horizon=60), "divide"),
        (lambda: MetaTrainConfig((Stage(PES(truncation=100), 1, 1e-3),), horizon=50), "Shorten the truncation"),
        (lambda: MetaTrainConfig(evaluate_runs=0), "evaluate_runs must be at least 1"),
        (lambda: MetaTrainConfig(clip_norm=0.0), "clip_norm must be positive"),
        (lambda: Stage(PES(), 0, 1e-3), "at least one outer step"),
        (lambda: Stage(PES(), 5, 1e-3, warmup=5), "warm-up"),
        (lambda: Stage(PES(), 5, 0.0), "rate must be positive"),
        (lambda: Stage(PES(), 5, 1.0, schedule="step"), "schedule must be"),
    ],
)
def test_settings_that_cannot_work_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
