"""Text and its tokens."""

import itertools
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from places import data_folder

from optax_unf.tasks.data.text import Text, lm1b, python_reference
from optax_unf.tasks.data.tokens import byte_pair_tokens

SHARD, HELD_OUT = "news.en-00001-of-00100", "news.en.heldout-00000-of-00050"
PARTS = ("1b_benchmark.dev.tokens", "1b_benchmark.test.tokens")


# Text.


def put(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text(f"{folder.name}/{name}\n" * 20)


def test_which_text_is_taken(tmp_path, monkeypatch):
    def found() -> list[bytes]:
        text = lm1b(tmp_path)
        return [part.splitlines()[0] for part in (text.train, text.test)]

    with pytest.raises(FileNotFoundError, match=rf"at any depth, shards .*{HELD_OUT}.* or input.txt, but holds none"):
        lm1b(tmp_path)
    put(tmp_path / "b" / "shakespeare", "input.txt", "README.md")
    assert found() == [b"shakespeare/input.txt"] * 2
    put(tmp_path / "c", "input.txt")
    put(tmp_path / "a", "input.txt")
    assert found() == [b"a/input.txt"] * 2  # the first folder by name, on every file system
    put(tmp_path / "lm1b", PARTS[0], HELD_OUT)
    assert found() == [b"a/input.txt"] * 2  # half of the parts is none
    put(tmp_path / "parts", PARTS[1])
    assert found() == [b"lm1b/" + PARTS[0].encode(), b"parts/" + PARTS[1].encode()]
    put(tmp_path / "shards", f"{SHARD}.gz", f"{SHARD}~")
    assert found()[0] == b"lm1b/" + PARTS[0].encode()  # these are no text
    put(tmp_path / "shards", "news.en-00002-of-00100", SHARD)
    assert found() == [b"shards/" + SHARD.encode(), b"lm1b/" + HELD_OUT.encode()]
    assert lm1b(tmp_path).train.splitlines()[-1] == b"shards/" + SHARD.encode()
    assert lm1b(tmp_path, shards=2).train.splitlines()[-1] == b"shards/news.en-00002-of-00100"
    assert "2 of its training shards" in lm1b(tmp_path, shards=2).source
    monkeypatch.setenv("OPTAX_UNF_DATA", str(tmp_path / "b"))
    assert lm1b().train.startswith(b"shakespeare/input.txt")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        lm1b(tmp_path / "nowhere")


def test_the_last_tenth_of_a_text_is_held_out(tmp_path):
    lines = [f"{n} Größe\n" for n in range(1000)]
    (tmp_path / "input.txt").write_text("".join(lines))
    text = lm1b(tmp_path)
    assert (text.train + text.test).decode() == "".join(lines)
    assert text.test.decode().splitlines(keepends=True) == lines[-len(text.test.splitlines()) :]
    assert abs(len(text.test) / len(text.train + text.test) - 0.1) < 0.002


def test_the_text_that_comes_with_python(monkeypatch):
    monkeypatch.delenv("OPTAX_UNF_DATA", raising=False)
    text = lm1b()
    assert text == python_reference()
    assert len(text.train) > 200_000
    assert len(text.test) > 20_000
    assert b"iterator" in text.train
    assert "Python" in text.source


@pytest.mark.data
def test_sentences_of_the_benchmark_are_held_out():
    text = lm1b(data_folder(f"lm1b/{PARTS[0]}"))
    train, test = (part.decode().splitlines() for part in (text.train, text.test))
    assert [len(train), len(test)] == [12_216, 12_105]  # as shared/data/README.md has it
    assert sum(len(line.split()) for line in train) == 310_490
    assert not set(train) & set(test)


# Tokens.


def byte_of() -> dict[str, int]:
    """Bytes by the characters that a byte-level vocabulary writes for them: as they are if printable, else moved up."""
    printable = [n for n in range(256) if chr(n) not in " \xa0\xad" and chr(n).isprintable()]
    others = [n for n in range(256) if n not in printable]
    return {chr(n): n for n in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


@pytest.fixture
def vocabularies(monkeypatch):
    """The tokenizers that are made, as lists of what their tokens stand for."""
    import tokenizers

    made = []
    real = tokenizers.Tokenizer
    monkeypatch.setattr(tokenizers, "Tokenizer", lambda model: made.append(real(model)) or made[-1])

    def spelled(number: int) -> list[bytes]:
        names = made[number].get_vocab()
        return [bytes(byte_of()[x] for x in name) for name in sorted(names, key=names.__getitem__)]

    return spelled


def test_tokens_spell_the_text(vocabularies):
    train = ("the cat sat on the mat, the cat's hat\n" * 40 + "naïve 猫\x0c\x85\u2028\r\nlast line").encode()
    text = Text(train, "a dog with other letters: Ω, \x00\x7f 🙂\n\n".encode(), "")
    parts = byte_pair_tokens(text, 300)
    names = vocabularies(0)
    assert len(names) <= 300
    assert sorted(names[:256]) == [bytes([n]) for n in range(256)]
    for tokens, raw in zip(parts, (text.train, text.test), strict=True):
        assert tokens.dtype == np.int32
        assert b"".join(names[token] for token in tokens) == raw
        assert len(tokens) < len(raw) or raw is text.test
    assert len(parts[0]) < len(train) / 3


def test_the_first_token_is_the_most_frequent_pair(vocabularies):
    words = ["bab", "abba", "cab", "bc"]
    byte_pair_tokens(Text(" ".join(words * 5).encode(), b"a", ""), 257)
    text = [words[0], *(f" {word}" for word in words[1:])] + [f" {word}" for word in words] * 4
    pairs = Counter(pair for word in text for pair in itertools.pairwise(word))
    (most, _), *_ = pairs.most_common(1)
    assert vocabularies(0)[256] == "".join(most).encode() == b"ab"


@pytest.mark.slow
def test_tokens_are_the_same_in_every_process():
    code = (
        "import hashlib, sys\n"
        "from optax_unf.tasks.data.text import python_reference\n"
        "from optax_unf.tasks.data.tokens import byte_pair_tokens\n"
        "parts = byte_pair_tokens(python_reference(), 512)\n"
        "sys.stdout.write(hashlib.sha256(b''.join(x.tobytes() for x in parts)).hexdigest())\n"
    )
    found = set()
    for threads, seed in (("1", "0"), ("4", "1")):
        environment = os.environ | {"RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": seed}
        found.add(subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True).stdout)
    assert len(found) == 1


def test_vocabulary_errors(monkeypatch):
    text = Text(b"abc" * 100, b"abc" * 100, "")
    with pytest.raises(ValueError, match="at least the 256 bytes, but has 255"):
        byte_pair_tokens(text, 255)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ModuleNotFoundError, match=r"tokenizers, .*pip install 'optax-unf\[tasks\]'"):
        byte_pair_tokens(text, 256)
