"""Settings, which are frozen dataclasses, from what a JSON file holds."""

import dataclasses
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

_Settings = TypeVar("_Settings")


def settings_from_json(cls: type[_Settings], found: Any, what: str) -> _Settings:
    """Settings of a class; what is left out has its default.

    Args:
      cls: a dataclass.
      found: what the file holds.
      what: the name of the settings, for errors.

    Raises:
      ValueError: a setting is unknown, missing or of another type, or the class refuses it.

    Example:
      >>> @dataclasses.dataclass(frozen=True)
      ... class Walk:
      ...     steps: int
      ...     pace: float = 1.0
      >>> settings_from_json(Walk, {"steps": 3}, "a walk")
      Walk(steps=3, pace=1.0)
      >>> settings_from_json(Walk, {"steps": "3"}, "a walk")
      Traceback (most recent call last):
      ValueError: The setting steps of a walk must be int, but is '3'.
    """
    if not isinstance(found, Mapping):
        raise ValueError(f"The settings of {what} must be an object of JSON, but are {found!r}.")
    known = [field.name for field in dataclasses.fields(cls)]  # pyright: ignore[reportArgumentType]
    if unknown := sorted(set(found) - set(known)):
        raise ValueError(f"The settings of {what} are {', '.join(known)}; there is no {', '.join(unknown)}.")
    hints = get_type_hints(cls)
    # JSON has no tuples.
    read = {name: tuple(x) if isinstance(x, list) and _is_tuple(hints[name]) else x for name, x in found.items()}
    for name, value in read.items():
        if not _fits(value, hints[name]):
            raise ValueError(f"The setting {name} of {what} must be {_shown(hints[name])}, but is {found[name]!r}.")
    try:
        return cls(**read)
    except TypeError as error:
        raise ValueError(f"The settings of {what} do not suffice: {error}.") from error


def _is_tuple(hint: Any) -> bool:
    return get_origin(hint) is tuple


def _fits(value: Any, hint: Any) -> bool:
    kind = get_origin(hint) or hint
    if kind in (Union, types.UnionType):
        return any(_fits(value, one) for one in get_args(hint))
    if kind is Literal:
        return value in get_args(hint)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind is tuple:
        inner = get_args(hint)
        if not isinstance(value, tuple):
            return False
        if inner[-1] is Ellipsis:
            return all(_fits(x, inner[0]) for x in value)
        return len(value) == len(inner) and all(map(_fits, value, inner))
    return isinstance(value, kind)


def _shown(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint).replace("typing.", "")
