"""Text: One Billion Word, any other text of the user's, or one that comes with Python."""

import dataclasses
import os
import re
from pathlib import Path

from optax_unf.tasks.data import files

_HELD_OUT_SHARE = 0.1


@dataclasses.dataclass(frozen=True)
class Text:
    """A text in two parts.

    Attributes:
      train: UTF-8.
      test: held out, UTF-8.
      source: what it is.
    """

    train: bytes
    test: bytes
    source: str


def lm1b(data_dir: str | Path | None = None, *, shards: int = 1) -> Text:
    """One Billion Word (Chelba et al. 2013), or a text in its place.

    In the folder that the user names (see `optax_unf.tasks.files.find`), or anywhere below it, the first of:

    1. the benchmark's training shards `news.en-000NN-of-00100`, with the shard
       `news.en.heldout-00000-of-00050` held out;
    2. its parts `1b_benchmark.dev.tokens`, with `1b_benchmark.test.tokens` held out;
    3. `input.txt`, its last tenth held out.

    Without a folder: the reference of the Python language that comes with Python itself, which needs no download.

    Args:
      data_dir: folder with the text.
      shards: how many training shards to read, of about 40 MB each.

    Raises:
      FileNotFoundError: the folder holds none of these.
    """
    root = files.given_folder(data_dir)
    if root is None:
        return python_reference()
    found = {}
    for folder, below, names in os.walk(root):
        below.sort()  # os.walk goes on in this order
        for name in sorted(names):
            found.setdefault(name, Path(folder, name))
    training = sorted(filter(re.compile(r"news\.en-\d{5}-of-\d{5}").fullmatch, found))
    held_out = "news.en.heldout-00000-of-00050"
    if training and held_out in found:
        chosen = training[:shards]
        train = b"".join(found[name].read_bytes() for name in chosen)
        return Text(train, found[held_out].read_bytes(), f"One Billion Word, {len(chosen)} of its training shards")
    if {"1b_benchmark.dev.tokens", "1b_benchmark.test.tokens"} <= set(found):
        train, test = (found[f"1b_benchmark.{part}.tokens"].read_bytes() for part in ("dev", "test"))
        return Text(train, test, "One Billion Word, parts of its held-out set")
    if "input.txt" in found:
        return _split(found["input.txt"].read_bytes(), "input.txt")
    raise FileNotFoundError(
        f"{root} must hold, at any depth, shards of One Billion Word (news.en-00001-of-00100 and {held_out}), or "
        f"1b_benchmark.dev.tokens and 1b_benchmark.test.tokens, or input.txt, but holds none. Put one there, or leave "
        f"data_dir and OPTAX_UNF_DATA unset to use a text that comes with Python."
    )


def python_reference() -> Text:
    """The topics of Python's `help()`: English prose and code, half a million bytes, not the same in all versions."""
    from pydoc_data.topics import topics

    return _split(
        "\n".join(topics[name] for name in sorted(topics)).encode(), "the language reference in Python's help()"
    )


def _split(text: bytes, source: str) -> Text:
    # Between lines, so that no character is cut.
    start = text.rfind(b"\n", 0, int(len(text) * (1 - _HELD_OUT_SHARE))) + 1
    return Text(text[:start], text[start:], source)
