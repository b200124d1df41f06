"""The code in docs/inference.md runs, and prints what stands below it."""

import contextlib
import io
import re

from places import ROOT

# A block of Python, and the block of its output where one follows.
BLOCK = re.compile(r"```python\n(.*?)```(?:\s*```text\n(.*?)```)?", re.DOTALL)


def test_the_code_of_the_page_on_inference_prints_what_the_page_says():
    blocks = BLOCK.findall((ROOT / "docs" / "inference.md").read_text())
    assert blocks
    names = {}
    for code, expected in blocks:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(code, names)
        assert printed.getvalue().rstrip() == expected.rstrip()
