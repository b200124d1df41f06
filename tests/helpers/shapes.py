"""The type checker of the tests: beartype, on the annotations that say shapes or dtypes."""

import inspect
import typing

import jaxtyping
from beartype import beartype


def checked(function):
    """The function that jaxtyping hands to a type checker, which checks arrays only.

    Of other types pyright knows more. The tests of what the package refuses hand over strings for numbers, and what
    the package counts with may be numpy's integers.
    """
    says = {name for name, hint in function.__annotations__.items() if _says_a_shape(hint)}
    if not says:
        return _unchecked
    for name in set(function.__annotations__) - says:
        function.__annotations__[name] = typing.Any
    return beartype(function)


def _unchecked(*args, **kwargs):
    """What jaxtyping calls in place of a function that it checks; without arrays there is nothing to check."""


def _says_a_shape(hint) -> bool:
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    if inspect.isclass(hint) and issubclass(hint, jaxtyping.PyTree):
        return hasattr(hint, "leaftype")
    return any(map(_says_a_shape, typing.get_args(hint)))
