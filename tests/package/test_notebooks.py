"""The notebooks in examples/ run from top to bottom, without the network, and are kept without outputs."""

import json
import re
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "examples" / "notebooks").glob("*.ipynb"))
# What each prints, if all is well.
PRINTS = {
    "getting_started": r"unf +last 20 steps 0\.0",
    "infer_a_spec": r"outputs agree: True[\s\S]*wrong names: \(",
    "meta_train_in_ten_minutes": r"before: held-out loss [\d.]+[\s\S]*after: held-out loss [\d.]+",
    "predict_from_weights": r"R2 on 30 networks that the predictor has not seen: 0\.[5-9][\s\S]*same prediction: True",
}


def test_every_notebook_is_known():
    assert sorted(PRINTS) == [path.stem for path in NOTEBOOKS]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_has_no_outputs(path):
    code = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert code
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = "".join(out.get("text", "") for cell in notebook.cells for out in cell.get("outputs", []))
    assert re.search(PRINTS[path.stem], printed), printed
