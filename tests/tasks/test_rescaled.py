"""Tasks in other units: rescaled parameters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_cnn_task import small_task

from optax_unf import tasks
from optax_unf.meta import Training
from optax_unf.tasks import Rescaled, task_spec


def test_one_scale_for_each_leaf_and_run():
    task = Rescaled(small_task(), 0.1, 10.0)
    draw = jax.jit(jax.vmap(lambda key: jnp.stack(jax.tree.leaves(task.of_run(key).scales))))
    scales = np.log10(draw(jax.random.split(jax.random.key(0), 500)))
    assert scales.shape == (500, 6)
    assert len(np.unique(scales)) > 2900
    np.testing.assert_array_less(np.abs(scales), 1 + 1e-6)
    # Uniform on [-1, 1]: variance 1 / 3, leaves independent.
    np.testing.assert_allclose(scales.mean(0), 0, atol=0.12)
    np.testing.assert_allclose(np.cov(scales.T), np.eye(6) / 3, atol=0.08)


def test_rescaled_runs_begin_with_the_same_losses_and_then_differ():
    task = small_task()
    plain, rescaled = Training(task, optax.sgd), Training(Rescaled(task, 0.3, 3.0), optax.sgd)

    @jax.jit
    def losses(rate, key):
        return jnp.stack([_losses(problem, rate, key, 3) for problem in (plain, rescaled)])

    first, second = losses(0.3, jax.random.key(0)), losses(0.3, jax.random.key(1))
    np.testing.assert_allclose(first[0, 0], first[1, 0], rtol=1e-5)
    assert np.abs(first[0, 1:] - first[1, 1:]).min() > 1e-4
    # Without training, losses are the same at every step: the scales of a run do not change.
    still = losses(0.0, jax.random.key(1))
    np.testing.assert_allclose(still[0], still[1], rtol=1e-5)
    assert not np.allclose(first[1], second[1])


def _losses(problem, rate, key, steps):
    def step(run, _):
        return problem.step(rate, run)

    return jax.lax.scan(step, problem.start(rate, key), length=steps)[1]


@pytest.mark.slow
def test_gradient_descent_in_other_units():
    """SGD on `inner` is SGD on the parameters with `scale**2` times the rate."""
    task = small_task()
    problem = Training(Rescaled(task, 0.3, 3.0), optax.sgd)
    rate, key = 0.05, jax.random.key(0)
    run = jax.jit(problem.start)(rate, key)
    scales = problem.task.of_run(run.key).scales
    expected = task.init(jax.random.split(key)[0])
    step, sample = jax.jit(functools.partial(problem.step, rate)), jax.jit(task.sample)
    loss_and_grads = jax.jit(jax.value_and_grad(task.loss))
    for n in range(3):
        run, loss = step(run)
        expected_loss, grads = loss_and_grads(expected, sample(jax.random.fold_in(run.key, n)))
        np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
        expected = jax.tree.map(lambda x, g, scale: x - rate * scale**2 * g, expected, grads, scales)
    for x, scale, y in zip(*map(jax.tree.leaves, (run.params, scales, expected)), strict=True):
        np.testing.assert_allclose(x * scale, y, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_scale_one_is_the_task_itself():
    task = small_task()
    one = Rescaled(task, 1.0, 1.0)
    results = []
    for problem in (Training(one, optax.adam), Training(task, optax.adam)):
        run, loss = problem.step(0.1, problem.start(0.1, jax.random.key(0)))
        results.append((run.params, loss))
    jax.tree.map(np.testing.assert_array_equal, *results)
    assert task_spec(one) == task_spec(task)
    assert one.name == "small-rescaled-1-1"
    assert isinstance(one, tasks.Task)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0), (2.0, 1.0), (1.0, np.inf), (np.nan, 1.0)])
def test_ranges_that_are_none(low, high):
    with pytest.raises(ValueError, match="positive and finite, low at most high, but low is"):
        Rescaled(small_task(), low, high)
