"""Where the repository is, and the data files that tests with the marker `data` read."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def data_folder(file: str) -> Path:
    """The folder of data files, which has to hold this one; the test is skipped without."""
    for candidate in (os.environ.get("OPTAX_UNF_DATA") or "/nonexistent", ROOT.parent / "shared" / "data"):
        if Path(candidate, file).is_file():
            return Path(candidate)
    pytest.skip(f"needs {file} in the folder that OPTAX_UNF_DATA names")
