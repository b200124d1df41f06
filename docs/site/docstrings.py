"""An extension of griffe, which reads the package for the site."""

import re
from typing import Any

import griffe


class Docstrings(griffe.Extension):
    """Shows `Example:` as code, as griffe does `Examples:`."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Renames the section of one docstring."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
