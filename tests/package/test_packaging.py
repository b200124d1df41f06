"""The wheel, in a second environment; and what importing the package imports."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from places import ROOT

PRETRAINED = ROOT / "pretrained"

# What is not a core dependency.
EXTRAS = ("flax", "orbax", "tyro", "matplotlib", "sklearn", "pooch", "tqdm", "hypothesis", "pytest")


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """The standard output of a command; its standard error is in the message where it fails."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")} | environment
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--quiet", "-w", folder, cwd=ROOT)
    (wheel,) = folder.glob("optax_unf-*.whl")
    return wheel


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory) -> Path:
    """The interpreter of a second environment, with the wheel and the dependencies of this one."""
    folder = tmp_path_factory.mktemp("second") / "venv"
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-deps")
    run(*pip, wheel, cwd=folder)
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    # Lines of a .pth file go to the end of sys.path: what this environment has itself comes first, and the
    # .pth files of the other one, such as that of an editable install, are not read.
    dependencies = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "dependencies.pth").write_text("\n".join(sorted(dependencies)) + "\n")
    return python


@pytest.mark.slow
def test_wheel_has_every_file(wheel):
    with zipfile.ZipFile(wheel) as archive:
        found = set(archive.namelist())
    package = {path.relative_to(ROOT).as_posix() for path in (ROOT / "optax_unf").rglob("*.py")}
    pretrained = {f"optax_unf/_pretrained/{path.relative_to(PRETRAINED).as_posix()}" for path in weight_files()}
    assert "optax_unf/py.typed" in found
    assert package <= found
    assert pretrained <= found
    # Nothing else is installed: no tests, no caches.
    others = {name for name in found - package - pretrained if ".dist-info/" not in name}
    data = {
        "optax_unf/py.typed",
        *(f"optax_unf/compare/bundled/{suite}.npz" for suite in ("unseen", "probe", "stress")),
    }
    data |= {f"optax_unf/zoo/bundled/small.{kind}" for kind in ("safetensors", "json")}
    assert {name for name in others if not name.startswith("optax_unf/_pretrained/")} == data
    assert any(name.endswith("/licenses/LICENSE") for name in found)


def weight_files() -> list[Path]:
    return [path for path in PRETRAINED.rglob("*") if path.is_file() and not path.name.startswith(".")]


def test_core_dependencies_are_few(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = archive.read(metadata).decode().splitlines()
    required = [line.removeprefix("Requires-Dist: ") for line in lines if line.startswith("Requires-Dist: ")]
    core = {requirement.split(">=")[0] for requirement in required if "extra ==" not in requirement}
    assert core == {"jax", "jaxtyping", "numpy", "optax", "safetensors"}
    extras = {line.removeprefix("Provides-Extra: ") for line in lines if line.startswith("Provides-Extra: ")}
    assert {"demo", "meta", "nn", "test", "dev"} <= extras


SCRIPT = """
import importlib.metadata, json
import optax_unf
names = optax_unf.list_pretrained().names
assert all(isinstance(optax_unf.load_weights(name), optax_unf.MetaWeights) for name in names)
tasks = [optax_unf.load_card(name)["task"] for name in names]
versions = [optax_unf.__version__, importlib.metadata.version("optax-unf")]
print(json.dumps({"file": optax_unf.__file__, "names": names, "tasks": tasks, "versions": versions}))
"""


@pytest.mark.slow
def test_installed_wheel_finds_its_weights(python, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    found = json.loads(run(python, script, cwd=tmp_path))
    assert Path(found["file"]).resolve().is_relative_to(python.parents[1].resolve())
    assert sorted(found["names"]) == sorted(path.stem for path in PRETRAINED.glob("*.safetensors"))
    assert all(found["tasks"])
    assert len(set(found["versions"])) == 1


@pytest.mark.slow
def test_checkout_finds_its_weights(tmp_path):
    found = json.loads(run(sys.executable, "-c", SCRIPT, cwd=tmp_path, PYTHONPATH=str(ROOT)))
    assert Path(found["file"]).resolve() == ROOT / "optax_unf" / "__init__.py"
    assert sorted(found["names"]) == sorted(path.stem for path in PRETRAINED.glob("*.safetensors"))


def test_import_imports_no_extra(tmp_path):
    script = "import json, sys, optax_unf; print(json.dumps(sorted(sys.modules)))"
    modules = json.loads(run(sys.executable, "-c", script, cwd=tmp_path, PYTHONPATH=str(ROOT)))
    assert "optax_unf" in modules
    assert not set(EXTRAS) & set(modules)
    assert not {"optax_unf.compare", "optax_unf.meta", "optax_unf.nn"} & set(modules)


def test_what_needs_extras_is_imported_on_demand(tmp_path):
    script = (
        "import json, sys, optax_unf; listed = dir(optax_unf); found = optax_unf.meta.meta_train.__module__; "
        "print(json.dumps([listed, found, optax_unf.meta is sys.modules['optax_unf.meta'], "
        "optax_unf.compare.compare_optimizers.__module__, optax_unf.nn.UNF.__module__, hasattr(optax_unf, 'metta')]))"
    )
    listed, *found = json.loads(run(sys.executable, "-c", script, cwd=tmp_path, PYTHONPATH=str(ROOT)))
    assert {"compare", "meta", "nn", "unf", "__version__"} <= set(listed)
    assert found == ["optax_unf.meta.train", True, "optax_unf.compare.optimizers", "optax_unf.nn.unf", False]
