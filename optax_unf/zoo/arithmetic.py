"""Questions of arithmetic, and which of them are held out."""

import dataclasses

import numpy as np
from jaxtyping import Integer

# The last ends an answer, and fills the places before a question and after an answer.
CHARACTERS = "0123456789+=."
END = len(CHARACTERS) - 1
EQUALS = CHARACTERS.index("=")
_MOST_QUESTIONS = 200_000


@dataclasses.dataclass(frozen=True, eq=False)
class Questions:
    """Questions and their answers, as numbers of characters.

    Attributes:
      asked: each ends with `=`; shorter ones begin with the end character, so that all are read to the same place.
      answers: each ends with the end character, at least one.
    """

    asked: Integer[np.ndarray, "questions length"]
    answers: Integer[np.ndarray, "questions places"]


def make_questions(largest: int, held_out: int, *, seed: int = 0) -> tuple[Questions, Questions]:
    """Different sums of two numbers for training, and held out.

    They are all sums there are, or 200,000 of them by chance, in an order given by the seed.

    Args:
      largest: the largest operand; the smallest is 0.
      held_out: how many are held out.
      seed: of the choice.

    Raises:
      ValueError: there are not more questions than those to be held out, or operands have over nine digits.

    Example:
      >>> train, test = make_questions(largest=19, held_out=50)
      >>> train.asked.shape, test.answers.shape
      ((350, 6), (50, 3))
      >>> show(train.asked[0]), show(train.answers[0])
      ('12+10=', '22.')
    """
    if not 0 <= largest < 10**9:
        raise ValueError(f"The largest operand must be between 0 and 999,999,999, but is {largest}.")
    count = (largest + 1) ** 2
    if not 0 < held_out < count:
        raise ValueError(
            f"The questions held out must be between 1 and {count - 1}, as there are {count} with operands up to "
            f"{largest}, but are {held_out}."
        )
    random = np.random.default_rng(seed)
    if count <= _MOST_QUESTIONS:
        numbers = random.permutation(count)
    else:
        numbers = np.unique(random.integers(count, size=_MOST_QUESTIONS))
        numbers = random.permutation(numbers)
    pairs = list(zip(*(x.tolist() for x in np.divmod(numbers, largest + 1)), strict=True))
    length, places = len(f"{largest}+{largest}="), len(f"{2 * largest}") + 1
    end = CHARACTERS[END]
    asked = np.array([_numbers(f"{a}+{b}=".rjust(length, end)) for a, b in pairs], np.int32)
    answers = np.array([_numbers(f"{a + b}".ljust(places, end)) for a, b in pairs], np.int32)
    return Questions(asked[held_out:], answers[held_out:]), Questions(asked[:held_out], answers[:held_out])


def show(numbers: Integer[np.ndarray, " length"]) -> str:
    """The characters of a question or an answer."""
    return "".join(CHARACTERS[number] for number in numbers)


def _numbers(text: str) -> list[int]:
    return [CHARACTERS.index(character) for character in text]
