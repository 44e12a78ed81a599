"""Rows of benchmark files: JSON lines (`.jsonl`, `.jsonl.gz`), or one JSON object with its rows under a name.

A row says where it is from, so that what it lacks can be named: file, line, field.
"""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple


class BenchmarkRow(NamedTuple):
    """Of a benchmark file, with fields that are checked when they are read."""

    fields: Any
    where: str
    """File and line (or number)."""

    def get(self, name: str, kind: type | tuple[type, ...], what: str) -> Any:
        """A field, `a.b` for one within another.

        Raises:
            ValueError: it is missing, or of another kind.
        """
        found = self.fields
        for part in name.split("."):
            if not isinstance(found, dict) or part not in found:
                has = sorted(found) if isinstance(found, dict) else type(found).__name__
                raise ValueError(f"{self.where}: field {name!r} is missing, there is {has}.")
            found = found[part]
        if not isinstance(found, kind) or (isinstance(found, bool) and kind is not bool):
            raise ValueError(f"{self.where}: field {name!r} is {found!r:.80}, expected {what}.")
        return found

    def text(self, name: str) -> str:
        """A string."""
        return self.get(name, str, "a string")

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of strings, not empty."""
        found = self.get(name, list, "a list of strings")
        if not found or not all(isinstance(x, str) for x in found):
            raise ValueError(f"{self.where}: field {name!r} is {found!r:.80}, expected a list of strings.")
        return tuple(found)

    def number(self, name: str) -> int | float:
        """A number."""
        return self.get(name, (int, float), "a number")

    def flag(self, name: str) -> bool:
        """True or false."""
        return self.get(name, bool, "true or false")

    def rows(self, name: str) -> "list[BenchmarkRow]":
        """A list of objects."""
        return [BenchmarkRow(x, f"{self.where}, {name} {i}") for i, x in enumerate(self.get(name, list, "a list"))]

    def choice(self, name: str, n: int) -> int:
        """A number that is one of `n` choices'."""
        found = self.get(name, int, f"one of 0 to {n - 1}")
        if not 0 <= found < n:
            raise ValueError(f"{self.where}: field {name!r} is {found}, there are {n} choices (0 to {n - 1}).")
        return found

    def one_of(self, name: str, options: Sequence[str]) -> int:
        """Which of some words a field is."""
        found = self.text(name)
        if found not in options:
            raise ValueError(f"{self.where}: field {name!r} is {found!r}, expected one of {list(options)}.")
        return list(options).index(found)


def read(path: Path, field: str = "") -> list[BenchmarkRow]:
    """Rows of a file, under `field` if it is one JSON object (empty for a list).

    Raises:
        ValueError: no such file, not JSON, or no rows; file and line are named.
    """
    if not path.is_file():
        raise ValueError(f"no file {path}.")
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        content = file.read()
    if ".jsonl" in path.name:
        rows = []
        for number, line in enumerate(content.split(b"\n"), 1):  # strings may hold U+2028, which is no end of line
            if line.strip():
                rows.append(BenchmarkRow(_parsed(line, f"{path}, line {number}"), f"{path}, line {number}"))
    else:
        found: Any = _parsed(content, str(path))
        if field:
            found = BenchmarkRow(found, str(path)).get(field, list, "a list of rows")
        if not isinstance(found, list):
            raise ValueError(f"{path}: expected a list of rows, there is {type(found).__name__}.")
        rows = [BenchmarkRow(x, f"{path}, {field or 'row'} {i}") for i, x in enumerate(found)]
    if not rows:
        raise ValueError(f"{path} has no rows.")
    return rows


def _parsed(content: bytes, where: str) -> Any:
    try:
        return json.loads(content.decode("utf-8"))
    except ValueError as e:
        raise ValueError(f"{where}: not JSON in UTF-8 ({e}).") from e
