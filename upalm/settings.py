"""Settings as JSON and back: frozen dataclasses, a choice between kinds told by the name of its class."""

import dataclasses
import types
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints


def to_json(settings: Any) -> Any:
    """Plain JSON values; a dataclass also says its class."""
    if dataclasses.is_dataclass(settings):
        fields = {f.name: to_json(getattr(settings, f.name)) for f in dataclasses.fields(settings)}
        return {"class": type(settings).__name__} | fields
    if isinstance(settings, tuple | list):
        return [to_json(x) for x in settings]
    return str(settings) if isinstance(settings, Path) else settings


def from_json(kind: Any, found: Any) -> Any:
    """The inverse of `to_json`, given the annotated type.

    Raises:
        ValueError: a kind or a setting that this version does not know.
    """
    if dataclasses.is_dataclass(kind) or get_origin(kind) in (Union, types.UnionType):
        options: list[Any] = [k for k in get_args(kind) or (kind,) if dataclasses.is_dataclass(k)]
        if isinstance(found, dict) and options:
            chosen = next((k for k in options if k.__name__ == found.get("class")), None)
            if chosen is None:
                names = [k.__name__ for k in options]
                raise ValueError(f"the settings have {found.get('class')!r} where one of {names} is expected.")
            hints = get_type_hints(chosen)
            if unknown := sorted(found.keys() - hints.keys() - {"class"}):
                raise ValueError(f"{chosen.__name__} has no {unknown}: the settings are of another version.")
            return chosen(**{k: from_json(hints[k], v) for k, v in found.items() if k != "class"})
        return found
    if get_origin(kind) is tuple:
        inner = get_args(kind)
        each = inner[:1] * len(found) if inner[-1] is Ellipsis else inner
        return tuple(from_json(k, x) for k, x in zip(each, found, strict=True))
    return Path(found) if kind is Path else found


def differences(there: dict[str, Any], here: dict[str, Any], within: str = "") -> list[str]:
    """What differs, each by its dotted name and both values."""
    found = []
    for name in sorted(there.keys() | here.keys()):
        a, b = there.get(name), here.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{within}{name}.")
        elif a != b:
            found.append(f"{within}{name}: {a} there, {b} here")
    return found
