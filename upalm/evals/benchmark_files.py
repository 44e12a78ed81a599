"""Read benchmark files: JSON lines (`.jsonl`, `.jsonl.gz`), or one JSON value with its rows in a list.

A row knows its location, so that errors name file, line and field.
"""

import gzip
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from upalm import files


class BenchmarkRow(NamedTuple):
    """A row of a benchmark file. Its fields are checked when they are read."""

    fields: Any
    location: str
    """File and line (or index)."""

    def get(self, name: str, kind: type | tuple[type, ...], expected: str) -> Any:
        """Return a field; `a.b` is a field of a field.

        Raises:
            ValueError: it is missing, or of another type.
        """
        value = self.fields
        for part in name.split("."):
            if not isinstance(value, dict) or part not in value:
                content = sorted(value) if isinstance(value, dict) else type(value).__name__
                raise ValueError(f"{self.location}: field {name!r} is missing, the row has {content!s:.200}.")
            value = value[part]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.error(name, value, expected)
        return value

    def error(self, name: str, value: object, expected: str) -> ValueError:
        """Build the error for a field with a wrong value."""
        return ValueError(f"{self.location}: field {name!r} is {value!r:.80}, expected {expected}.")

    def text(self, name: str) -> str:
        """Return a string."""
        return _check_text(self, name, self.get(name, str, "a string"))

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a list of strings, at least one."""
        value = self.get(name, list, "a list of strings")
        if not value or not all(isinstance(x, str) for x in value):
            raise self.error(name, value, "a list of strings, not empty")
        return tuple(_check_text(self, name, x) for x in value)

    def number(self, name: str) -> int | float:
        """Return a finite number."""
        value = self.get(name, (int, float), "a number")
        if not math.isfinite(value):
            raise self.error(name, value, "a finite number")
        return value

    def numbers(self, name: str) -> dict[str, int | float]:
        """Return an object whose values are finite numbers, at least one."""
        value = self.get(name, dict, "an object of numbers")
        row = BenchmarkRow(value, f"{self.location}, {name}")
        if not value:
            raise self.error(name, value, "an object of numbers, not empty")
        for key, x in value.items():
            if isinstance(x, bool) or not isinstance(x, int | float) or not math.isfinite(x):
                raise row.error(key, x, "a finite number")
        return value

    def flag(self, name: str) -> bool:
        """Return true or false."""
        return self.get(name, bool, "true or false")

    def rows(self, name: str) -> "list[BenchmarkRow]":
        """Return a list of objects as rows."""
        return [BenchmarkRow(x, f"{self.location}, {name} {i}") for i, x in enumerate(self.get(name, list, "a list"))]

    def choice(self, name: str, n: int) -> int:
        """Return the index of one of `n` choices."""
        value = self.get(name, int, f"one of 0 to {n - 1}")
        if not 0 <= value < n:
            raise ValueError(f"{self.location}: field {name!r} is {value}, there are {n} choices (0 to {n - 1}).")
        return value

    def one_of(self, name: str, options: Sequence[str]) -> int:
        """Return the index in `options` of a string."""
        value = self.text(name)
        if value not in options:
            raise self.error(name, value, f"one of {list(options)}")
        return list(options).index(value)


def _check_text(row: BenchmarkRow, name: str, value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as e:
        raise row.error(name, value, f"Unicode text: character {e.start} is half of a surrogate pair") from e
    return value


def read(path: Path, field: str = "") -> list[BenchmarkRow]:
    """Read the rows of a file: those under `field` if the file is one JSON object, else its lines or its list.

    Raises:
        ValueError: no such file, a damaged file, other content than JSON in UTF-8, or no rows; the line is named.
    """
    if not path.is_file():
        raise ValueError(f"no file {path}.")
    content = read_bytes(path)
    if ".jsonl" in path.name:
        lines = enumerate(content.split(b"\n"), 1)  # strings may hold U+2028, which ends no line
        located = [(line, f"{path}, line {number}") for number, line in lines if line.strip()]
        rows = [BenchmarkRow(parse_json(line, location), location) for line, location in located]
    else:
        values: Any = parse_json(content, str(path))
        if field:
            values = BenchmarkRow(values, str(path)).get(field, list, "a list of rows")
        if not isinstance(values, list):
            raise ValueError(f"{path}: expected a list of rows, the file has {type(values).__name__}.")
        rows = [BenchmarkRow(x, f"{path}, {field or 'row'} {i}") for i, x in enumerate(values)]
    if not rows:
        raise ValueError(f"{path} has no rows.")
    return rows


def read_bytes(path: Path) -> bytes:
    """Read a file, decompressed if its name ends in .gz, without a byte-order mark.

    Raises:
        ValueError: it cannot be read or is damaged.
    """
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            return file.read().removeprefix(b"\xef\xbb\xbf")
    except (OSError, EOFError, zlib.error) as e:
        raise ValueError(f"{path} cannot be read ({e}): get the file again.") from e


def read_text(path: Path) -> str:
    """Read a text file in UTF-8.

    Raises:
        ValueError: it cannot be read, or is not UTF-8.
    """
    try:
        return read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as e:
        raise ValueError(f"{path} is not UTF-8 ({e}).") from e


def parse_json(content: bytes, location: str) -> Any:
    """Parse JSON.

    Raises:
        ValueError: not JSON in UTF-8; `location` is named.
    """
    try:
        return files.parse_json(content)
    except ValueError as e:
        raise ValueError(f"{location}: not JSON in UTF-8 ({e}).") from e
