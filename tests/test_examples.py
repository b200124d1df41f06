"""The README's code and the examples run."""

import inspect
import re
import runpy
import sys
from pathlib import Path

import jax
import matplotlib.image
import numpy as np

ROOT = Path(__file__).parents[1]


def test_the_usage_example_of_the_readme_trains():
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL).group(1)
    assert len(code.splitlines()) <= 11
    names = {}
    exec(code, names)
    task, params = names["task"], names["params"]
    assert jax.jit(task.loss)(params, task.sample(jax.random.key(9))) < 0.2


def test_quickstart(tmp_path, monkeypatch, capsys):
    quickstart = runpy.run_path(str(ROOT / "examples" / "quickstart.py"))
    main = quickstart["main"]
    # A quarter of the steps and of the grid: the whole takes a minute.
    main.__globals__.update(STEPS=500, RATES=np.array([1e-2, 1e-1]))
    picture = tmp_path / "curves.png"
    monkeypatch.setattr(sys, "argv", ["quickstart.py", "--seeds", "2", "--plot", str(picture)])
    main()
    printed = capsys.readouterr().out
    rows = {
        line.split(" (")[0]: [float(x) for x in re.findall(r"\d+\.\d+", line.split(")")[1])]
        for line in printed.splitlines()
        if line.startswith(("UNF", "Adam", "SGDM"))
    }
    assert set(rows) == {"UNF", "Adam", "SGDM"}
    at_25, _, _, accuracy = rows["UNF"]
    assert at_25 < 0.5
    assert accuracy > 90
    assert matplotlib.image.imread(picture).std() > 0.01


def test_infer_transformer(monkeypatch, capsys):
    monkeypatch.delenv("OPTAX_UNF_DATA", raising=False)  # the text is this package's source
    main = runpy.run_path(str(ROOT / "examples" / "infer_transformer.py"))["main"]
    main.__globals__.update(WIDTH=8, HEADS=2, BLOCKS=1, LENGTH=8, BATCH=4)
    monkeypatch.setattr(sys, "argv", ["infer_transformer.py", "--steps", "200", "--weights", "mlp-fashion-mnist-sgdm"])
    main()
    printed = capsys.readouterr().out
    assert re.search(r"blocks/0/attention/key/kernel +\(8, 2, 4\)", printed)
    early, late = (float(loss) for loss in re.findall(r"loss (\d+\.\d+)", printed))
    assert late < early
    # From the spec to the trained model in under 15 lines.
    assert len(inspect.getsource(main.__globals__["train"]).splitlines()) + len(["spec = ", "optimizer = "]) < 15
