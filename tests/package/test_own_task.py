"""The example of a task of one's own."""

import re
import runpy
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from places import ROOT

from optax_unf import infer_spec
from optax_unf.tasks import Task, task_spec


@pytest.fixture(scope="module")
def example():
    return runpy.run_path(str(ROOT / "examples" / "own_task.py"))


def test_the_exact_solution_has_no_loss(example):
    class Exact(example["Poisson"]):
        def solution(self, params, x):
            return jnp.sin(jnp.pi * x) / jnp.pi**2 + jnp.sin(3 * jnp.pi * x) / (3 * jnp.pi) ** 2

    exact, task = Exact(), example["Poisson"]()
    places = task.sample(jax.random.key(0))
    assert exact.loss(None, places) < 1e-9
    assert exact.error(None) < 1e-5
    params = task.init(jax.random.key(1))
    assert [task.solution(params, jnp.float32(x)) for x in (0, 1)] == [0, 0]
    assert task.loss(params, places) > 0.1


def test_the_names_of_axes(example):
    task = example["Poisson"]()
    assert isinstance(task, Task)
    params = task.init(jax.random.key(0))
    inferred = infer_spec(task.loss, params, task.sample(jax.random.key(1)), io="permute")
    names = {}
    for found, given in zip(inferred.leaves, task_spec(task).leaves, strict=True):
        for a, b in zip(found.axes, given.axes, strict=True):
            assert names.setdefault(b, a) == a
    assert names["a"] not in (None, names["b"])


@pytest.mark.slow
def test_own_task(example, monkeypatch, capsys):
    main = example["main"]
    main.__globals__.update(HORIZON=100, RATES=np.array([1e-4, 1e-2]))
    monkeypatch.setattr(sys, "argv", ["own_task.py", "--outer-steps", "4", "--seeds", "2"])
    main()
    rows = re.findall(r"^(\S.*?) {2,}(\d+\.\d+) +(\d+\.\d+) %$", capsys.readouterr().out, re.MULTILINE)
    results = {name: (float(loss), float(error)) for name, loss, error in rows}
    assert list(results) == ["Adam, rate 0.01", "pretrained", "meta-trained"]
    adam, pretrained, trained = results.values()
    assert max(pretrained[0], trained[0]) < adam[0] < 1  # a network that is 0 everywhere has the loss 1
    assert max(trained[1], adam[1]) < 50
    assert trained != pretrained
