"""Objects by the name of their module or file: what users bring of their own."""

import difflib
import importlib
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def imported(source: str) -> Any:
    """What `module:attribute` or `file.py:attribute` names.

    Raises:
      ValueError: nothing is found there.

    Example:
      >>> imported("math:pi") > 3
      True
    """
    module_name, _, attribute = source.rpartition(":")
    try:
        if module_name.endswith(".py"):
            found = importlib.util.spec_from_file_location(Path(module_name).stem, module_name)
            if found is None or found.loader is None:
                raise ImportError(f"{module_name} is no Python file")
            module = importlib.util.module_from_spec(found)
            sys.modules[found.name] = module
            # As for a script: it may import the files beside it.
            if (folder := str(Path(module_name).resolve().parent)) not in sys.path:
                sys.path.insert(0, folder)
            found.loader.exec_module(module)
        else:
            module = importlib.import_module(module_name)
        return getattr(module, attribute)
    except (ImportError, FileNotFoundError, AttributeError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name != module_name.partition(".")[0]:
            raise ValueError(f"{module_name} of {source!r} cannot be imported: {error}.") from error
        raise ValueError(f"{source!r} must be module:attribute or file.py:attribute, but: {error}") from error


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question about the nearest name, to end a message with; nothing where none is near.

    Example:
      >>> did_you_mean("mlp-digit", ["mlp-digits", "cnn-cifar10"])
      ' Did you mean mlp-digits?'
    """
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]}?" if near else ""
