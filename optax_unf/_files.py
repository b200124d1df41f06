"""Files that are there whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replaced(path: str | Path) -> Iterator[Path]:
    """A temporary file beside another, whose place it takes at the end of the block.

    Where the block raises, the other file is left as it was. Folders that are missing are made.

    Args:
      path: the file to be.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp(), "notes", "one.txt")
      >>> with replaced(path) as temporary:
      ...     _ = temporary.write_text("all of it")
      >>> path.read_text(), len(list(path.parent.iterdir()))
      ('all of it', 1)
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Writes a text file whole."""
    with replaced(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
