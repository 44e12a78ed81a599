"""Checks of settings that Python itself does not make."""

from numbers import Real
from typing import Any, Literal, TypeGuard, get_args, get_origin, get_type_hints


def is_whole(value: object) -> TypeGuard[int]:
    """Return whether a value is a whole number; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a value is a number, of Python or of NumPy; True and False are none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def check_choices(settings: Any) -> None:
    """Check the fields of a dataclass that are a Literal, a tuple of one, or a bool.

    Raises:
        ValueError: a value that is none of the choices, which are named.
    """
    for name, kind in get_type_hints(type(settings)).items():
        if kind is bool and not isinstance(getattr(settings, name), bool):
            raise ValueError(f"{name} is {getattr(settings, name)!r}, expected True or False.")
        is_tuple = get_origin(kind) is tuple
        kind, value = get_args(kind)[0] if is_tuple else kind, getattr(settings, name)
        for one in value if is_tuple else (value,):
            if get_origin(kind) is Literal and one not in get_args(kind):
                raise ValueError(f"{name} is {value!r}, expected one of {', '.join(get_args(kind))}.")
