"""Types of settings: checks of values and descriptions in words."""

import math
import types
import typing
from typing import Any, Literal


def fits(value: Any, kind: Any) -> bool:
    """Returns whether `value` is of the type `kind`, for the types that a config has."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, one) for one in arguments)
    if origin is Literal:
        return value in arguments
    if origin is tuple:
        variadic = isinstance(value, tuple) and arguments[1:] == (...,)
        wanted = arguments[:1] * len(value) if variadic else arguments
        return (
            isinstance(value, tuple) and len(value) == len(wanted) and all(map(fits, value, wanted))
        )
    if kind is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def options(kind: Any) -> tuple[Any, ...]:
    """Returns the allowed values where the type lists them, else ()."""
    if typing.get_origin(kind) is Literal:
        return typing.get_args(kind)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return tuple(value for one in typing.get_args(kind) for value in options(one))
    return ()


def described(kind: Any) -> str:
    """Returns the type in words, for messages."""
    if kind is bool:
        return "True or False"
    if kind is float:
        return "a finite float"
    if typing.get_origin(kind) is tuple:
        first, *others = typing.get_args(kind)
        if others == [...]:
            return f"any number of: {described(first)}"
        return f"{1 + len(others)} values, {', '.join(map(described, (first, *others)))}"
    return kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")
