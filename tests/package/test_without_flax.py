"""Training needs no flax, which is an extra; what does need it says so."""

import importlib.metadata
import json
import os
import subprocess
import sys

import pytest
from places import ROOT

from optax_unf.meta.card import provenance

# None in its place stops the import of a module, as if it were not installed.
BLOCK = "import sys; sys.modules['flax'] = None\n"


def run(script, *arguments):
    """The standard output of a script without flax."""
    command = [sys.executable, "-c", BLOCK + script, *arguments]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


TRAIN = """
import json
import jax, jax.numpy as jnp, optax
import optax_unf

params = {"w1": jax.random.normal(jax.random.key(0), (4, 3)), "b1": jnp.zeros(3), "w2": jnp.ones((3, 1))}
x = jnp.linspace(-1.0, 1.0, 20).reshape(5, 4)

def loss(params, x):
    return jnp.mean((jnp.tanh(x @ params["w1"] + params["b1"]) @ params["w2"] - x[:, :1]) ** 2)

def first_that_fits_any_model(head):
    return next(x.name for x in optax_unf.list_pretrained() if x.fits == "any model" and x.head.startswith(head))

optimizer = {
    "none": lambda: optax_unf.unf(total_steps=3),
    "deepsets": lambda: optax_unf.unf(first_that_fits_any_model("deepsets")),
    "unf": lambda: optax_unf.unf(first_that_fits_any_model("unf"), spec=optax_unf.infer_spec(loss, params, x)),
}[sys.argv[1]]()

@jax.jit
def step(params, state):
    value, grads = jax.value_and_grad(loss)(params, x)
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state, value

state, losses = optimizer.init(params), []
for _ in range(3):
    params, state, value = step(params, state)
    losses.append(float(value))
print(json.dumps([*losses, float(loss(params, x))]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("head", ["none", "deepsets", "unf"])
def test_an_optimizer_trains(head):
    losses = json.loads(run(TRAIN, head))
    assert len(set(losses)) == 4
    assert losses[-1] < losses[0]


def test_what_needs_no_flax_is_imported():
    # The parts of the package that do are not listed, since `help` imports what is.
    script = """
import json
import optax_unf, optax_unf.infer, optax_unf.meta, optax_unf.nominal, optax_unf.tasks
print(json.dumps(dir(optax_unf)))
"""
    listed = set(json.loads(run(script)))
    assert {"infer_spec", "meta", "nominal", "tasks", "unf"} <= listed
    assert not {"compare", "nn"} & listed


@pytest.mark.parametrize(
    "needed", ["optax_unf.nn.UNF", "optax_unf.compare.UNSEEN", "importlib.import_module('optax_unf.zoo.predictors')"]
)
def test_what_needs_flax_says_so(needed):
    script = f"""
import importlib
import optax_unf
try:
    {needed}
except ModuleNotFoundError as error:
    print(error)
"""
    assert run(script).strip().endswith("need flax, which is not installed: pip install 'optax-unf[nn]'.")


def test_a_card_names_the_packages_that_are_there(monkeypatch):
    version = importlib.metadata.version

    def version_without_flax(name):
        if name == "flax":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    assert "flax" in provenance([])["versions"]
    monkeypatch.setattr(importlib.metadata, "version", version_without_flax)
    assert list(provenance([])["versions"]) == ["optax-unf", "jax", "optax"]
