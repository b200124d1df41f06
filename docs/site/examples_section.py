"""An extension of griffe: the section `Example:` of docstrings is shown as code, as `Examples:` is."""

import re
from typing import Any

import griffe


class ExamplesSection(griffe.Extension):
    """Reads `Example:` as `Examples:`."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Renames the section of one docstring."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
