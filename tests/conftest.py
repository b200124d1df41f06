"""Tests trace and compile much and compute little: compilers optimize little, and tests share what they compile."""

import gc
import os
from pathlib import Path

import hypothesis
import jax
import jaxtyping
import pytest

# The shapes and dtypes that annotations promise, checked in every call: before anything imports the package. Where no
# arrays go, in `infer` and `cli`, the checks would only take time.
_OF_ARRAYS = ("compare", "equivariant", "meta", "nn", "nominal", "optimizer", "spec", "tasks", "zoo")
_OF_ARRAYS += ("_sharding", "_xla")
jaxtyping.install_import_hook([f"optax_unf.{name}" for name in _OF_ARRAYS], "shapes.checked")

# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

_TESTS = Path(__file__).parent
_STRICT = ("meta/test_estimators", "nn/", "nominal/", "optimizer/")

# No threads for parts of a program, which do more work in all. Read once, when modules of tests make their arrays.
_FLAGS = ["--xla_cpu_parallel_codegen_split_count=1"]
if jax.__version_info__ < (0, 11):
    # The older way to emit fused loops, which compiles twice as fast; later versions stop at a flag they do not know.
    _FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_FLAGS])
# Tracing makes many objects that stay: to look for garbage among them as often as usual takes a tenth of the time.
gc.set_threshold(100_000, 20, 20)


@pytest.fixture(scope="session", autouse=True)
def _compilation(tmp_path_factory, worker_id):
    folder = tmp_path_factory.getbasetemp()
    # The workers of pytest-xdist have folders of their own in one that is common to them.
    common = folder if worker_id == "master" else folder.parent
    jax.config.update("jax_disable_most_optimizations", True)
    # Where in the sources an operation comes from is of no use to a compiled program.
    jax.config.update("jax_traceback_in_locations_limit", 0)
    # For processes that tests start: programs optimized in another way round in another way.
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"
    jax.config.update("jax_compilation_cache_dir", str(common / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Tests of the mathematics run under jax's strict promotion, but for those that say why not.

    Tasks and examples are left out: most models add biases to rows, and optax's Adam takes powers of counts.
    """
    if not str(item.path.relative_to(_TESTS)).startswith(_STRICT) or item.get_closest_marker("promotes"):
        return (yield)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Slow tests and doctests check no annotations: they would take a fifth longer, and others make the same calls."""
    slow = any(item.get_closest_marker(name) for name in ("slow", "xla")) or isinstance(item, pytest.DoctestItem)
    jaxtyping.config.update("jaxtyping_disable", slow)
    try:
        return (yield)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def pytest_collection_modifyitems(items):
    for item in items:
        if "data_dir" in getattr(item, "fixturenames", ()):
            item.add_marker("data")


@pytest.fixture
def unchecked():
    """Leaves the shapes and dtypes of annotations unchecked."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)
