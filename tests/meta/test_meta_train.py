"""The outer loop: it learns, on one task or several, and does not depend on the number of devices."""

import dataclasses
import functools
import json
import subprocess
import sys
from typing import ClassVar, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_unf import Architecture, Inferred, infer_spec, init_weights, make_spec, unf
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
from optax_unf.meta.checks import named_tasks
from optax_unf.meta.inner import unroll
from optax_unf.meta.outer import make_outer_step, start_stage, state_shardings
from optax_unf.meta.train import _initial_weights
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
        return jnp.mean((x @ params["w"].T + params["b"][None] - y) ** 2)


SMALL = Architecture(hidden_channels=8, hidden_layers=1)
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


@pytest.mark.slow
def test_backprop_then_pes_beats_the_initial_weights():
    config = MetaTrainConfig(
        (
            Stage(Backprop(runs=4, truncation=20), steps=50, learning_rate=1e-2, warmup=5),
            Stage(PES(pairs=4, truncation=20), steps=10, learning_rate=1e-3),
        ),
        horizon=40,
        evaluate_every=10,
        evaluate_runs=4,
    )
    result = run(config)
    problem = learned_training(SMALL, Regression())
    keys = jax.random.split(jax.random.key(99), 8)
    mean_loss = jax.jit(lambda theta: final_loss(training_losses(problem, theta, keys, 40)).mean())
    assert mean_loss(result.weights.theta) < 0.5 * mean_loss(initial_weights().theta)


def initial_weights():
    """Those that `run` sets out from."""
    return init_weights(SMALL, task_spec(Regression()), jax.random.split(jax.random.key(0), 3)[0])


@pytest.mark.slow
def test_the_best_weights_are_kept(whole):
    result = whole
    losses = [record["final_loss"] for record in result.curve]
    assert [record["step"] for record in result.curve] == [0, 2, 4, 6, 8, 10, 11]
    eval_key = jax.random.split(jax.random.key(0), 3)[1]
    problem = learned_training(SMALL, Regression())
    again = training_losses(problem, result.weights.theta, jax.random.split(eval_key, 2), 20)
    np.testing.assert_allclose(final_loss(again).mean(), min(losses), rtol=1e-5)


@pytest.fixture(scope="module")
def whole_and_steps():
    """A run, and the jitted outer step of each of its stages."""
    steps = []

    def made(*args):
        steps.append(make_outer_step(*args))
        return steps[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "make_outer_step", made)
        return run(TWO_STAGES), steps


@pytest.fixture
def whole(whole_and_steps):
    return whole_and_steps[0]


def test_the_outer_step_compiles_once_a_stage(whole_and_steps):
    # With evaluations in between, which give the state another best theta.
    assert [step._cache_size() for step in whole_and_steps[1]] == [1, 1]


class Weak(Regression):
    """The same regression; its parameters are of weak type, as `jnp.full` of a number is."""

    def init(self, key):
        return jax.tree.map(lambda x: jnp.full(x.shape, 0.1), super().init(key))


def test_weak_types_end_at_the_start():
    assert all(jax.typeof(x).weak_type for x in jax.tree.leaves(Weak().init(jax.random.key(0))))
    theta = jax.eval_shape(initial_weights).theta
    theta = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), theta).with_scalars(log_alpha=jnp.log(0.01))
    assert theta.scalars.log_alpha.weak_type
    state = start_stage({"a": learned_training(SMALL, Weak())}, TWO_STAGES, jax.random.key(0), 0, theta)
    assert not any(jax.typeof(x).weak_type for x in jax.tree.leaves(state))


class Deep(Regression):
    """The same regression by two layers: another weight space, with other roles."""

    name = "deep"
    axes: ClassVar = {"v": ("hidden", "in"), "w": ("out", "hidden")}

    def init(self, key):
        keys = jax.random.split(key)
        return {"v": 0.5 * jax.random.normal(keys[0], (4, 3)), "w": 0.5 * jax.random.normal(keys[1], (2, 4))}

    def loss(self, params, batch):
        x, y = batch
        return jnp.mean((x @ params["v"].T @ params["w"].T - y) ** 2)


TIED = Architecture(coefficients="tied", hidden_channels=4, hidden_layers=1)
SGDM = Architecture("none")


@pytest.mark.slow
def test_the_gradient_of_several_tasks_is_their_mean():
    tasks = {"a": Regression(), "b": Deep()}
    problems = {name: learned_training(SGDM, task) for name, task in tasks.items()}
    theta = _initial_weights(SGDM, tasks, jax.random.key(3)).theta
    # A large norm, so that nothing is clipped and Adam's first momentum is a tenth of the gradient.
    config = MetaTrainConfig((Stage(PES(pairs=2, truncation=5), 4, 1e-2),), horizon=20, clip_norm=1e6)
    key = jax.random.key(0)
    state = start_stage(problems, config, key, 0, theta)
    step_key = jax.random.fold_in(jax.random.fold_in(key, 0), 0)
    estimator = config.stages[0].estimator
    grads, losses = [], []
    for n, (problem, particles) in enumerate(zip(problems.values(), state.particles, strict=True)):
        estimate = jax.jit(functools.partial(estimator.estimate, problem, 20))
        grad, _, metrics = estimate(theta, particles, jax.random.fold_in(step_key, n))
        grads.append(grad)
        losses.append(float(metrics["loss"]))
    wanted = jax.tree.map(lambda *xs: sum(np.float64(x) for x in xs) / 2, *grads)
    after, metrics = make_outer_step(problems, config, 0, state_shardings(state))(state, key, 0)
    momentum = optax.tree.get(after.adam, "mu")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(10 * a, b, rtol=1e-3, atol=1e-6), momentum, wanted)
    np.testing.assert_allclose([metrics["loss/a"], metrics["loss/b"]], losses, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], np.mean(losses), rtol=1e-5)


@pytest.mark.slow
def test_several_tasks_are_evaluated_each_and_together():
    config = MetaTrainConfig(
        (Stage(PES(pairs=1, truncation=5), 2, 1e-3),), horizon=10, evaluate_every=2, evaluate_runs=2
    )
    tasks = [Regression(), Deep()]
    result = meta_train(SGDM, tasks, config, jax.random.key(0), progress=False)
    before, record = result.curve
    assert (before["step"], record["step"]) == (0, 2)
    names = ("Regression", "deep")
    assert set(record) == {"step", "final_loss", *(f"final_loss/{name}" for name in names)}
    np.testing.assert_allclose(
        record["final_loss"], np.mean([record[f"final_loss/{name}"] for name in names]), rtol=1e-6
    )
    keys = jax.random.split(jax.random.split(jax.random.key(0), 3)[1], 2)
    for name, task in zip(names, tasks, strict=True):
        losses = training_losses(learned_training(SGDM, task), result.last.theta, keys, 10)
        np.testing.assert_allclose(record[f"final_loss/{name}"], losses.mean(), rtol=1e-5)


def test_what_is_no_task_is_refused():
    class Lossless:
        init, sample = Regression.init, Regression.sample

    class WithAccuracy(Regression):
        def loss(self, params, batch):
            return super().loss(params, batch), {"accuracy": 1.0}

    class OfEach(Regression):
        def loss(self, params, batch):
            return jnp.stack([super().loss(params, batch)] * 3)

    for task, message in (
        (Lossless(), "lacks loss"),
        (Regression, "is a class"),
        ("mlp-digits", "'mlp-digits' lacks init, sample, loss"),
        ([Regression(), Lossless()], "lacks loss"),
        (WithAccuracy(), "that of WithAccuracy is a tuple. Auxiliary values stay out"),
        (OfEach(), r"that of OfEach is float32\[3\]"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            meta_train(SMALL, task, TWO_STAGES, jax.random.key(0), progress=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"preconditioner": "rms"}, "preconditioner is None, not 'rms'"),
        ({"head": "none"}, "head is 'unf', not 'none'"),
        ({"hidden_channels": 4}, "hidden_channels is 8, not 4"),
        ({"step_warmup": True}, "step_warmup is False, not True"),
    ],
)
def test_a_start_of_another_architecture_is_refused(change, message):
    config = dataclasses.replace(SMALL, **change)
    with pytest.raises(ValueError, match=message):
        meta_train(config, Regression(), TWO_STAGES, jax.random.key(0), weights=initial_weights(), progress=False)


def test_a_start_of_another_weight_space_is_refused():
    with pytest.raises(ValueError, match=r"full coefficients.*differs at leaf"):
        meta_train(SMALL, Deep(), TWO_STAGES, jax.random.key(0), weights=initial_weights(), progress=False)


def test_a_task_may_have_a_spec_and_a_parameter_of_no_entries():
    class Empty(Regression):
        def init(self, key):
            return super().init(key) | {"nothing": jnp.zeros((0, 3))}

    task = Empty()
    task.axes = make_spec(Regression.axes | {"nothing": ("no", "in")}, task.init(jax.random.key(0)))
    assert task_spec(task) is task.axes
    config = MetaTrainConfig((Stage(PES(pairs=2, truncation=5), steps=2, learning_rate=1e-3),), horizon=10)
    result = meta_train(Architecture(head="none"), task, config, jax.random.key(0), progress=False)
    assert np.isfinite(result.curve[-1]["final_loss"])


def test_the_spec_of_a_task_may_be_inferred():
    task = Regression()
    batch = task.sample(jax.random.key(0))
    task.axes = Inferred(task.loss, batch)
    inferred = infer_spec(task.loss, jax.eval_shape(task.init, jax.random.key(0)), batch, io="permute")
    assert task_spec(task) == inferred
    assert inferred.sizes


@pytest.mark.slow
def test_a_run_without_a_finite_evaluation_warns():
    class Broken(Regression):
        def loss(self, params, batch):
            return super().loss(params, batch) + jnp.nan

    config = MetaTrainConfig((Stage(PES(pairs=1, truncation=5), steps=1, learning_rate=1e-3),), horizon=10)
    with pytest.warns(RuntimeWarning, match="best weights are those it began with"):
        result = meta_train(Architecture(head="none"), Broken(), config, jax.random.key(0), progress=False)
    begin = init_weights(Architecture(head="none"), task_spec(Broken()), jax.random.key(0))
    chex.assert_trees_all_equal(result.weights.theta, begin.theta)


def test_a_task_may_be_a_tuple():
    class Tuple(NamedTuple):
        width: int = 3
        init = Regression.init
        sample = Regression.sample
        loss = Regression.loss

    assert list(named_tasks(Tuple())) == ["Tuple"]


def test_tasks_of_one_name_are_numbered():
    assert list(named_tasks([Regression(), Deep(), Regression()])) == ["Regression", "deep", "Regression-2"]


def test_weights_for_several_tasks_have_the_roles_of_all():
    keys = [
        {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(_initial(*tasks))}
        for tasks in ((Regression(),), (Deep(),), (Regression(), Deep()))
    ]
    assert keys[0] != keys[1]
    assert keys[2] == keys[0] | keys[1]


def _initial(*tasks):
    return _initial_weights(TIED, {str(n): task for n, task in enumerate(tasks)}, jax.random.key(0)).theta


def test_tasks_of_other_weight_spaces_need_an_architecture_that_fits_any():
    with pytest.raises(ValueError, match=r"must have one weight space.*deep differs from Regression.*leaf"):
        meta_train(SMALL, [Regression(), Deep()], TWO_STAGES, jax.random.key(0))
    with pytest.raises(ValueError, match="at least one task"):
        meta_train(SMALL, [], TWO_STAGES, jax.random.key(0))


_ON_FOUR_DEVICES = """
import json, sys
import jax
jax.config.update("jax_num_cpu_devices", 4)
sys.path.insert(0, sys.argv[1])
import test_meta_train
print(json.dumps([x.tolist() for x in test_meta_train.gradients()]))
"""


def gradients():
    """Of three steps of each estimator with a UNF head, on all devices there are."""
    problem = learned_training(SMALL, Regression())
    theta = init_weights(SMALL, task_spec(Regression()), jax.random.key(3)).theta

    @functools.partial(jax.jit, static_argnums=0)
    def three(estimator, key):
        def step(state, key):
            grad, state, _ = estimator.estimate(problem, 20, theta, state, key)
            return state, grad

        return jax.lax.scan(step, estimator.init(problem, 20, theta, key), jax.random.split(key, 3))[1]

    grads = [three(stage.estimator, jax.random.key(1)) for stage in TWO_STAGES.stages]
    return [np.asarray(g).ravel() for x in jax.tree.leaves(grads) for g in x]


@pytest.mark.slow
def test_gradients_do_not_depend_on_the_number_of_devices(request):
    command = [sys.executable, "-c", _ON_FOUR_DEVICES, str(request.path.parent)]
    four = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert jax.device_count() == 1
    for a, b in zip(gradients(), four, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * (1 + np.abs(a).max()))


def test_theta_may_be_a_learning_rate():
    problem = Training(Regression(), optax.sgd)
    losses = training_losses(problem, jnp.float32(0.1), jax.random.split(jax.random.key(0), 3), 50)
    assert losses.shape == (3, 50)
    assert losses[:, -5:].mean() < 0.1 * losses[:, 0].mean()


def test_optimizers_with_equal_keys_see_equal_batches():
    spec = make_spec(Regression.axes, Regression().init(jax.random.key(0)))
    assert spec == task_spec(Regression())
    weights = initial_weights()
    frozen = Training(Regression(), lambda theta: optax.set_to_zero())
    learned = Training(Regression(), lambda theta: unf(weights, factor=0.0))
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
        (lambda: Stage(PES(), 5, 0.0), "learning_rate must be positive, but is 0.0"),
        (lambda: Stage(PES(), 5, 1.0, scalar_rate=-1.0), "scalar_rate must be positive, but is -1.0"),
        (lambda: Stage(PES(), 5, 1.0, schedule="step"), "schedule must be"),
    ],
)
def test_settings_that_cannot_work_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("config", [TWO_STAGES, MetaTrainConfig()])
def test_settings_survive_json(config):
    assert MetaTrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"horizn": 5}, "there is no horizn"),
        ({"stages": [{"estimator": {"name": "PSE"}, "steps": 1, "learning_rate": 1.0}]}, "one of PES.* but is 'PSE'"),
        ({"stages": [{"estimator": {"name": "PES", "runs": 1}, "steps": 1, "learning_rate": 1.0}]}, "PES are pairs"),
        ({"stages": [{"estimator": {"name": "PES"}, "steps": 1}]}, "stage do not suffice.*learning_rate"),
        ({"horizon": 60}, "divide"),
        ([], "a meta-training run must be an object of JSON, but are \\[\\]"),
        ({"stages": 3}, "setting stages of a run must be .*, but is 3"),
        ({"stages": [3]}, "a stage must be an object of JSON, but are 3"),
        ({"stages": [{"estimator": 3, "steps": 1, "learning_rate": 1.0}]}, "estimator of a stage must be .*but is 3"),
        ({"stages": [{"estimator": {"name": [1]}}]}, "name of an estimator must be one of PES"),
        ({"stages": [{"estimator": {"name": "PES", "sigma": None}}]}, "setting sigma of PES must be float"),
        ({"horizon": True}, "setting horizon of a run must be int, but is True"),
    ],
)
def test_settings_from_json_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        MetaTrainConfig.from_dict(settings)


def test_a_found_step_is_scheduled_over_the_horizon_and_alpha_is_not():
    task, key = Regression(), jax.random.key(0)
    for step, ends_at_rest in (("distance", True), ("alpha", False)):
        architecture = Architecture(head="none", nominal="orthogonalized", step=step)
        training = learned_training(architecture, task, 20)
        theta = init_weights(architecture, task_spec(task), key).theta
        run, _ = unroll(training, theta, training.start(theta, key), 20)
        after, _ = training.step(theta, run)
        moved = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(optax.tree.sub(after.params, run.params)))
        assert (moved == 0) == ends_at_rest
