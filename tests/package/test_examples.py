"""The README's code and the examples run."""

import re
import runpy
import sys

import matplotlib.image
import numpy as np
import pytest
from places import ROOT


def test_the_usage_example_of_the_readme_trains():
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL).group(1)
    names = {}
    exec(code, names)
    assert names["loss"](names["params"], names["batch"]) < 0.1


def test_quickstart(tmp_path, monkeypatch, capsys):
    quickstart = runpy.run_path(str(ROOT / "examples" / "quickstart.py"))
    main = quickstart["main"]
    # The perceptron alone, and fewer rates: the whole takes two minutes.
    monkeypatch.setitem(main.__globals__, "RATES", np.array([1e-2, 1e-1]))
    picture = tmp_path / "curves.png"
    monkeypatch.setattr(sys, "argv", ["quickstart.py", "--seeds", "2", "--task", "perceptron", "--plot", str(picture)])
    main()
    rows = re.findall(r"^(\S+).*?(\d+\.\d{4}) +(\d+\.\d{4}) +(\d+\.\d{4})", capsys.readouterr().out, re.MULTILINE)
    assert [name.rstrip(",") for name, *_ in rows] == ["optax_unf.unf", "Adam", "Adam", "Muon"]
    final = {name: float(end) for name, _, end, _ in rows}
    assert final["optax_unf.unf"] < 0.5 * float(rows[1][2])
    assert matplotlib.image.imread(picture).std() > 0.01


def test_which_matrices(monkeypatch, capsys):
    main = runpy.run_path(str(ROOT / "examples" / "which_matrices.py"))["main"]
    monkeypatch.setattr(sys, "argv", ["which_matrices.py", "--steps", "60"])
    main()
    printed = capsys.readouterr().out
    without, inferred = printed.split("with the inferred spec")
    assert re.search(r"qkv +\(32, 96\) +32 x 96 ", without)
    assert re.search(r"qkv +\(32, 96\) +3 parts 32 x 32 ", inferred)
    assert len(re.findall(r"\d\.\d{4}$", printed, re.MULTILINE)) == 3


def test_nnx_optimizer_with_a_spec(capsys):
    loss = runpy.run_path(str(ROOT / "examples" / "with_flax_nnx_spec.py"))["main"]()
    assert re.search(r"gates/kernel +\(40, 128\) +4 of 8 x 32 and 4 of 32 x 32 ", capsys.readouterr().out)
    assert loss < 0.1


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


@pytest.mark.long
def test_predict_accuracy(monkeypatch, capsys):
    main = runpy.run_path(str(ROOT / "examples" / "predict_accuracy.py"))["main"]
    monkeypatch.setattr(sys, "argv", ["predict_accuracy.py", "--models", "80", "--epochs", "4"])
    main()
    assert float(re.search(r"held out: (\S+)", capsys.readouterr().out)[1]) > 0.5
