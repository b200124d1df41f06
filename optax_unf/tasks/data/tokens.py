"""Tokens of a byte-pair vocabulary."""

import numpy as np
from jaxtyping import Integer

from optax_unf.tasks.data.text import Text


def byte_pair_tokens(text: Text, vocabulary: int) -> tuple[Integer[np.ndarray, " n"], Integer[np.ndarray, " m"]]:
    """Both parts of a text in tokens of a byte-pair vocabulary (Sennrich et al. 2016), learned from the training part.

    Any text can be written in it, because the 256 bytes are tokens. A short text may give fewer tokens than asked.

    Args:
      text: the text.
      vocabulary: the number of tokens, at least 256.

    Raises:
      ModuleNotFoundError: the library `tokenizers` is not installed.
      ValueError: the vocabulary is smaller than the 256 bytes.
    """
    if vocabulary < 256:
        raise ValueError(f"A byte-pair vocabulary must have at least the 256 bytes, but has {vocabulary}.")
    try:
        import tokenizers
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "A byte-pair vocabulary needs tokenizers, which is not installed: pip install 'optax-unf[tasks]'."
        ) from error
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary,
        show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    train, test = (part.decode(errors="replace").splitlines(keepends=True) for part in (text.train, text.test))
    tokenizer.train_from_iterator(train, trainer)

    def encode(lines: list[str]) -> np.ndarray:
        return np.array([i for line in tokenizer.encode_batch(lines) for i in line.ids], np.int32)

    return encode(train), encode(test)
