"""Readers of one file: plain text, JSON Lines, Parquet and Arrow, compressed or not.

Every reader streams: a document is given before the next is read. A file that is no text, or is damaged, is named.
"""

import codecs
import gzip
import io
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from upalm.files import parse_json

DOCUMENT_CHARS = 8192
"""Plain text is cut into documents of about this length, so that some can be held out."""

_BLOCK_BYTES = 1 << 20
_ROWS_AT_ONCE = 1000
_WORD_CHARS = 256
_COMPRESSED = (".gz", ".zst")


class Document(NamedTuple):
    """A piece of text and the name that decides its split."""

    name: str
    text: str
    """Plain text, or the targets of a supervised example."""
    inputs: str | None = None
    """The inputs of a supervised example; None for plain text."""


class SourceFile(NamedTuple):
    """A file of a source."""

    path: Path
    name: str
    """Path within the source, with slashes: documents are named by it."""
    read: "Reader"

    @property
    def shown(self) -> str:
        """The path as errors print it."""
        return printable(self.path)


Reader = Callable[[SourceFile, list[str] | None], Iterator[Document]]
"""Yields the documents of a file. Appends to the list, if one is given, what is not UTF-8, instead of raising."""


class Undecodable(Exception):
    """A place in a file that holds no UTF-8, and the reason."""


def read_file(file: SourceFile, skipped: list[str] | None) -> Iterator[Document]:
    """Yield the documents of a file.

    Args:
        file: what to read.
        skipped: places that are not UTF-8 are added here, instead of raising.

    Raises:
        Undecodable: a place that is not UTF-8.
        ValueError: a damaged file or a malformed row, by name.
    """
    try:
        yield from file.read(file, skipped)
    except _arrow_errors() as e:
        raise ValueError(f"{file.shown}: it is damaged, or of another kind than its name says ({e}).") from e
    except (OSError, EOFError, zlib.error) as e:
        reason = e.strerror if isinstance(e, OSError) and e.strerror else e
        raise ValueError(f"{file.shown}: it cannot be read to its end ({reason}).") from e


def kind_of(path: Path) -> str:
    """The ending that says how to read a file, without that of its compression; empty if unknown."""
    ending = path.suffix.lower()
    inner = Path(path.stem).suffix.lower() if ending in _COMPRESSED else ending
    return inner if inner in READERS and (inner == ending or inner in (".txt", ".jsonl")) else ""


def printable(path: Path | str) -> str:
    """A path without the lone surrogates that stand for bytes that are not UTF-8."""
    return str(path).encode(errors="backslashreplace").decode()


def _open(path: Path) -> Any:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rb")
    if path.suffix.lower() == ".zst":
        return io.BufferedReader(_pyarrow("input_stream", path)(str(path), compression="zstd"))
    return path.open("rb")


def _arrow_errors() -> tuple[type[Exception], ...]:
    return (sys.modules["pyarrow"].ArrowException,) if "pyarrow" in sys.modules else ()


def _pyarrow(name: str, path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as e:
        raise ValueError(f"{path}: reading {path.suffix} needs pyarrow: pip install 'upalm[data]'.") from e
    return getattr(pyarrow, name)


# --- Readers --------------------------------------------------------------------------------------


def read_source_file(file: SourceFile, skipped: list[str] | None) -> Iterator[Document]:
    """Named by module, so that copies of a module in other packages land in the same split."""
    text = file.path.read_text(encoding="utf-8", errors="replace")  # a few declare another encoding
    if text:
        yield Document(module_name(file.path), text)


def module_name(path: Path) -> str:
    """Name of the module in a source file, or of the package whose `__init__` or `__main__` it is."""
    name = path.stem if path.stem not in ("__init__", "__main__") else path.parent.name
    return name.strip("_").lower()


def read_text(file: SourceFile, skipped: list[str] | None) -> Iterator[Document]:
    """Cut at line ends into documents of `DOCUMENT_CHARS` or a little more."""
    if skipped is not None:  # the whole file or nothing of it, so it is decoded once before
        try:
            for _ in _decode(file):
                pass
        except Undecodable as e:
            _skip_file(e, skipped)
            return
    parts, size, n = [], 0, 0
    for line in _lines(_decode(file)):
        parts.append(line)
        size += len(line)
        if size >= DOCUMENT_CHARS:
            yield Document(f"{file.name}:{n}", "".join(parts))
            parts, size, n = [], 0, n + 1
    if parts:
        yield Document(f"{file.name}:{n}", "".join(parts))


def _decode(file: SourceFile) -> Iterator[str]:
    """Blocks of text, without a byte order mark; binary files are told by their first bytes."""
    decoder, n_bytes, n_lines = codecs.getincrementaldecoder("utf-8-sig")(), 0, 1
    with _open(file.path) as f:
        while True:
            block = f.read(_BLOCK_BYTES)
            if n_bytes == 0:
                _check_start(file, block)
            n_bytes += len(block)
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as e:
                line, place = n_lines + e.object.count(b"\n", 0, e.start), n_bytes - len(e.object) + e.start
                raise Undecodable(f"{file.shown}, line {line} is not UTF-8 ({e.reason} at byte {place})") from e
            yield text
            n_lines += text.count("\n")
            if not block:
                return


def _check_start(file: SourceFile, start: bytes) -> None:
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise Undecodable(f"{file.shown} is not UTF-8 but UTF-16")
    if b"\0" in start[:8192]:
        raise Undecodable(f"{file.shown} is not UTF-8 text but binary (byte 0 at byte {start.index(0)})")


def _lines(blocks: Iterable[str]) -> Iterator[str]:
    """Lines with their ends; long lines are cut into documents, after a space if there is one."""
    tail = ""
    for block in blocks:
        *lines, tail = (tail + block).splitlines(keepends=True) or [""]
        for line in lines:
            *parts, rest = _cut(line)
            yield from parts
            yield rest
        *parts, tail = _cut(tail)
        yield from parts
    if tail:
        yield tail


def _cut(line: str) -> Iterator[str]:
    longest = DOCUMENT_CHARS + _WORD_CHARS
    while len(line) > longest:
        end = line.find(" ", DOCUMENT_CHARS - 1, longest) + 1 or DOCUMENT_CHARS
        yield line[:end]
        line = line[end:]
    yield line


def _read_json_lines(file: SourceFile, skipped: list[str] | None) -> Iterator[Document]:
    with _open(file.path) as f:
        for n, line in enumerate(f, start=1):  # bytes: cut at "\n" alone, JSON strings may hold U+2028
            where = f"{file.shown}, line {n}"
            try:
                if n == 1:
                    _check_start(file, line)
            except Undecodable as e:
                _skip_file(e, skipped)
                return
            try:
                text = line.removeprefix(codecs.BOM_UTF8).decode("utf-8")
            except UnicodeDecodeError as e:
                _skip(f"{where} is not UTF-8 ({e.reason} at byte {e.start} of the line)", skipped)
                continue
            try:
                row = parse_json(text) if text.strip() else {"text": ""}
            except ValueError as e:
                raise ValueError(f"{where}: not JSON ({e}), expected one object per line.") from e
            yield from _row_document(f"{file.name}:{n}", row, where, skipped)


def _read_parquet(file: SourceFile, skipped: list[str] | None) -> Iterator[Document]:
    with _pyarrow("parquet", file.path).ParquetFile(file.path) as table:
        columns = _text_columns(file, table.schema_arrow.names)
        yield from _read_batches(file, table.iter_batches(batch_size=_ROWS_AT_ONCE, columns=columns), skipped)


def _read_arrow(file: SourceFile, skipped: list[str] | None) -> Iterator[Document]:
    ipc = _pyarrow("ipc", file.path)
    with _pyarrow("memory_map", file.path)(str(file.path)) as f:
        is_random_access = f.read(6) == b"ARROW1"
        f.seek(0)
        if is_random_access:
            reader = ipc.open_file(f)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
        else:
            reader = batches = ipc.open_stream(f)
        columns = _text_columns(file, reader.schema.names)
        yield from _read_batches(file, (batch.select(columns) for batch in batches), skipped)


def _text_columns(file: SourceFile, names: list[str]) -> list[str]:
    columns = [c for c in names if c in ("text", "inputs", "targets")]
    if columns and len(set(columns)) == len(columns):
        return columns
    raise ValueError(f'{file.shown}: the columns are {names}, expected one "text", or "inputs" and "targets".')


def _read_batches(file: SourceFile, batches: Iterable[Any], skipped: list[str] | None) -> Iterator[Document]:
    n = 0
    for batch in batches:
        for start in range(0, batch.num_rows, _ROWS_AT_ONCE):
            for row in _rows(batch.slice(start, _ROWS_AT_ONCE)):
                n += 1
                where = f"{file.shown}, row {n}"
                if isinstance(row, UnicodeDecodeError):
                    _skip(f"{where} is not UTF-8 ({row.reason})", skipped)
                else:
                    yield from _row_document(f"{file.name}:{n}", row, where, skipped)


def _rows(batch: Any) -> list[Any]:
    """Rows as dictionaries; where a string is not UTF-8, the error in place of its row."""
    try:
        return batch.to_pylist()
    except UnicodeDecodeError as e:
        return [e] if batch.num_rows == 1 else [row for i in range(batch.num_rows) for row in _rows(batch.slice(i, 1))]


def _row_document(name: str, row: Any, where: str, skipped: list[str] | None) -> Iterator[Document]:
    keys = ("inputs", "targets") if isinstance(row, dict) and "inputs" in row else ("text",)
    texts: list[str] = []
    for key in keys:
        text = row.get(key) if isinstance(row, dict) else None
        if not isinstance(text, str):
            if not isinstance(row, dict):
                problem = f"it is {type(row).__name__}, one object per row is expected"
            else:
                problem = f"{key!r} is {type(text).__name__ if key in row else 'missing'}, expected a string"
            raise ValueError(f'{where}: expected an object with a "text", or "inputs" and "targets": {problem}.')
        try:
            text.encode()
        except UnicodeEncodeError as e:
            surrogate = f"{key!r} has the lone surrogate U+{ord(text[e.start]):04X} at character {e.start}"
            _skip(f"{where} is not UTF-8 ({surrogate})", skipped)
            return
        texts.append(text)
    if any(texts):
        yield Document(name, texts[-1], texts[0] if len(texts) == 2 else None)


def _skip(problem: str, skipped: list[str] | None) -> None:
    if skipped is None:
        raise Undecodable(problem)
    skipped.append(problem)


def _skip_file(problem: Undecodable, skipped: list[str] | None) -> None:
    if skipped is None:
        raise problem
    skipped.append(f"{problem}: the whole file is left out")


READERS: dict[str, Reader] = {
    ".txt": read_text,
    ".jsonl": _read_json_lines,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
}
