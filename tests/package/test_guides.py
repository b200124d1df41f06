"""The guides and the home page run as they stand, from top to bottom, and print what stands below their code."""

import contextlib
import io
import re
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parents[2]
# A block of Python, with the name of its file if it has one, and the block of its output where one follows.
BLOCK = re.compile(r"```python(?: title=\"(.*?)\")?\n(.*?)```(?:\s*```text\n(.*?)```)?", re.DOTALL)
GUIDES = sorted(path for path in (ROOT / "docs" / "guides").glob("*.md") if path.stem != "index")
# They train many networks.
SLOW = ("distributed", "meta-training", "predicting")


@pytest.mark.parametrize(
    "guide", [pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (path.stem in SLOW)) for path in GUIDES]
)
def test_a_guide_runs(guide, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # One guide gives the CPU several devices, which only a process that has not used JAX yet can do.
    update = jax.config.update
    monkeypatch.setattr(jax.config, "update", lambda *args: None if args[0] == "jax_num_cpu_devices" else update(*args))
    blocks = BLOCK.findall(guide.read_text())
    assert blocks
    names = {}
    for title, code, expected in blocks:
        if title:
            Path(title).write_text(code)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(code, names)
        if expected:
            assert printed.getvalue().rstrip() == expected.rstrip()


def test_every_guide_is_listed():
    index = (ROOT / "docs" / "guides" / "index.md").read_text()
    assert {path.name for path in GUIDES} == set(re.findall(r"\]\((\S+\.md)\)", index))
