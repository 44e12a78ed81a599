"""Read documents from text, JSON Lines, Parquet and Arrow files; and from plain text of any ending.

`.txt` and `.jsonl` may be compressed (`.gz`, `.zst`). Arrow files are what a folder saved by Hugging Face `datasets`
holds. Parquet, Arrow and `.zst` need `pip install 'upalm[data]'`. Every reader streams: a document is given before the
next is read.
"""

import codecs
import fnmatch
import gzip
import hashlib
import io
import json
import os
import random
import sys
import sysconfig
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from upalm.files import sha256_file

STDLIB = "stdlib"
"""The name of the embedded corpus: every machine with Python has it, nothing is downloaded."""

DOCUMENT_CHARS = 8192
"""Plain text is cut into documents of about this length, so that some can be held out."""

_SKIPPED_FOLDERS = {
    *("test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "_bundled"),
    *("encodings", "pydoc_data"),  # generated tables and help topics, not source text
}
_BLOCK_BYTES = 1 << 20
_ROWS_AT_ONCE = 1000
_PIECE_CHARS = 1000
_WORD_CHARS = 256
_COMPRESSED = (".gz", ".zst")


class Document(NamedTuple):
    """A piece of text and the name that decides its split."""

    name: str
    text: str
    """Plain text, or the targets of a supervised example."""
    inputs: str | None = None
    """The inputs of a supervised example; None for plain text."""


class Corpus(NamedTuple):
    """Documents for training and validation, and the places of text that is not UTF-8 and was left out."""

    train: list[Document]
    validation: list[Document]
    skipped: list[str]


class SourceFile(NamedTuple):
    """A file of a source."""

    path: Path
    name: str
    """Its path within the source, with slashes: documents are named by it."""
    read: "Reader"

    @property
    def shown(self) -> str:
        """The path as errors print it."""
        return _printable(self.path)


Reader = Callable[[SourceFile, list[str] | None], Iterator[Document]]
"""Yields the documents of a file. Appends to the list, if one is given, what is not UTF-8, instead of raising."""


class _Undecodable(Exception):
    """A place in a file that holds no UTF-8, and the reason."""


@dataclass
class TextSource:
    """Files of text and how they are read.

    Raises:
        ValueError: no such file or folder, a folder without text, or a kind that is not known.
    """

    source: str
    """`stdlib`, a file, or a folder that is searched recursively. Rows of JSON and tables have a `text`, or `inputs`
    and `targets`."""
    include: tuple[str, ...] = ()
    """Patterns such as `*.py`: exactly the matching files are read, as plain text if their kind is not known. Without
    any, files of the known kinds."""
    skip_undecodable: bool = False
    """Leave out text that is not UTF-8 and count it, instead of stopping."""
    options: tuple[str, ...] = ()
    """Options of the command in hand that hints in errors may name; none in Python."""
    files: list[SourceFile] = field(init=False, repr=False)
    """In the order of their paths."""
    other: Counter[str] = field(init=False, repr=False)
    """Files of a folder that are not read, by their ending."""
    skipped: list[str] = field(init=False, repr=False, default_factory=list)
    """Files and rows that `documents` left out because they are not UTF-8."""

    def __post_init__(self):
        if isinstance(self.source, os.PathLike):
            self.source = str(self.source)
        self.include = (self.include,) if isinstance(self.include, str) else tuple(self.include)
        self.other = Counter()
        if self.source == STDLIB:
            self.files = [SourceFile(p, _printable(p), _read_source_file) for p in _stdlib_files()]
            return
        root = Path(self.source) if isinstance(self.source, str) and self.source.strip() else None
        if root is None or not root.exists():
            raise ValueError(
                f"no such file or folder: {self.source!r}. Give a file of {', '.join(_READERS)}, a folder of them, "
                f"or {STDLIB!r} for Python's own source files."
            )
        names = {p: p.relative_to(root) for p in _walk(root)} if root.is_dir() else {root: Path(root.name)}
        self.files = [
            SourceFile(path, _printable(name.as_posix()), _READERS.get(_kind(path), _read_text))
            for path, name in names.items()
            if self._takes(path, name)
        ]
        if not self.files:
            what = f" match {' '.join(self.include)}" if self.include else f" are of {', '.join(_READERS)}"
            files = f"none of {self.other.total()} files ({_counts(self.other)}){what}" if self.other else "it is empty"
            raise ValueError(f"no text in {self.source!r}: {files}. {self._include_hint()}")

    def documents(self) -> Iterator[Document]:
        """Yield non-empty documents in a fixed order, each as soon as it is read.

        Raises:
            ValueError: an undecodable or damaged file or a malformed row, by file and line; or no text at all.
        """
        self.skipped, n = [], 0
        for file in self.files:
            for document in self._read(file):
                n += 1
                yield document
        if n == 0:
            left_out = f" (left out: {', '.join(self.skipped[:3])})" if self.skipped else ""
            raise ValueError(f"no text in {self.source!r}: its {len(self.files)} files are empty{left_out}.")

    def load(self) -> Corpus:
        """Read all documents and split them by name.

        Raises:
            ValueError: as `documents`; or too little text to hold any out for validation.
        """
        documents = list(self.documents())
        train = [d for d in documents if not is_validation(d.name)]
        validation = [d for d in documents if is_validation(d.name)]
        check_splits(self.source, len(train), len(validation))
        return Corpus(train, validation, self.skipped)

    def checksums(self) -> dict[str, str]:
        """Return the SHA-256 of each file, by its name."""
        try:
            return {file.name: sha256_file(file.path) for file in self.files}
        except OSError as e:
            raise ValueError(f"{_printable(e.filename)}: it cannot be read ({e.strerror}).") from e

    def notes(self) -> list[str]:
        """Return sentences on what was left out."""
        notes = []
        if self.other:
            notes.append(f"left out {self.other.total()} files of other kinds ({_counts(self.other)})")
        if self.skipped:
            more = ", ..." if len(self.skipped) > 5 else ""
            notes.append(f"left out {len(self.skipped)} texts: {'; '.join(self.skipped[:5])}{more}")
        return notes

    def _takes(self, path: Path, within: Path) -> bool:
        """Decide whether to read a file; if not, count it."""
        name = within.as_posix().lower()
        hidden = path != Path(self.source) and any(part.startswith(".") for part in within.parts)
        if self.include:
            patterns = [p.lower() for p in self.include]
            matches = any(fnmatch.fnmatchcase(x, p) for p in patterns for x in (name, within.name.lower()))
        else:
            matches = bool(_kind(path))
        if matches and not hidden:
            if not path.is_file():
                raise ValueError(f"{_printable(path)}: a dangling link or no regular file, expected a file.")
            return True
        self.other["hidden" if hidden else "".join(path.suffixes[-1:]).lower() or "no ending"] += 1
        return False

    def _read(self, file: SourceFile) -> Iterator[Document]:
        """Read a file; whatever is wrong with it becomes a ValueError that names it."""
        try:
            yield from file.read(file, self.skipped if self.skip_undecodable else None)
        except _Undecodable as e:
            raise ValueError(
                f"{e}. Convert it to UTF-8, or leave such text out with "
                f"{self._option('skip-undecodable', 'skip_undecodable=True')} (it is counted)."
            ) from e
        except _arrow_errors() as e:
            raise ValueError(f"{file.shown}: it is damaged, or of another kind than its name says ({e}).") from e
        except (OSError, EOFError, zlib.error) as e:
            reason = e.strerror if isinstance(e, OSError) and e.strerror else e
            raise ValueError(f"{file.shown}: it cannot be read to its end ({reason}).") from e

    def _include_hint(self) -> str:
        ending = next((kind for kind, _ in self.other.most_common() if kind.startswith(".")), ".md")
        option = self._option(f"include '*{ending}'", f"include=['*{ending}']")
        return f"Plain text of any ending is read with {option}."

    def _option(self, words: str, in_python: str) -> str:
        """How to set this in the command in hand, or in Python."""
        name, *values = words.split()
        option = next((option for option in self.options if option.endswith(name)), None)
        return " ".join([option, *values]) if option else f"{in_python} in Python"


def load(
    source: str, *, include: tuple[str, ...] = (), skip_undecodable: bool = False, options: tuple[str, ...] = ()
) -> Corpus:
    """Read all of a source and split it by name; see `TextSource`."""
    return TextSource(source, include, skip_undecodable, options).load()


def check_splits(source: str, n_train: int, n_validation: int) -> None:
    """Refuse text of which nothing is left for training or for validation."""
    if not n_train or not n_validation:
        raise ValueError(
            f"{source!r} gives {n_train} training and {n_validation} validation documents. Both are needed, and a "
            "tenth of the documents is held out by their names: give more text (100 KB is a good start)."
        )


def is_validation(name: str) -> bool:
    """Tell by its hash whether a name is the one in ten that is held out, whatever the order and machine."""
    return hashlib.sha256(name.encode()).digest()[0] * 10 < 256


def sample(documents: Iterable[Document], n_pieces: int = 4000, seed: int = 0) -> list[str]:
    """Draw pieces of 1000 characters from all training documents, every piece equally likely."""
    rng, pieces, n_seen = random.Random(seed), [], 0
    for document in documents:
        for text in () if is_validation(document.name) else (document.inputs or "", document.text):
            for start in range(0, len(text), _PIECE_CHARS):
                n_seen += 1
                place = len(pieces) if len(pieces) < n_pieces else rng.randrange(n_seen)
                if place < n_pieces:
                    pieces[place : place + 1] = [text[start : start + _PIECE_CHARS]]
    rng.shuffle(pieces)
    return pieces


# --- Files ----------------------------------------------------------------------------------------


def _kind(path: Path) -> str:
    """The ending that says how to read a file, without that of its compression; empty if unknown."""
    ending = path.suffix.lower()
    inner = Path(path.stem).suffix.lower() if ending in _COMPRESSED else ending
    return inner if inner in _READERS and (inner == ending or inner in (".txt", ".jsonl")) else ""


def _walk(root: Path) -> list[Path]:
    """Everything in a folder that is no folder, through links too, each folder once."""

    def refuse(e: OSError) -> None:
        raise ValueError(f"{_printable(e.filename)}: the folder cannot be read ({e.strerror}).") from e

    paths, visited = [], set()
    for folder, folders, names in os.walk(root, onerror=refuse, followlinks=True):
        if (real := os.path.realpath(folder)) in visited:
            folders.clear()
            continue
        visited.add(real)
        paths += [Path(folder, name) for name in names]
    return sorted(paths)


def _stdlib_files() -> list[Path]:
    root = Path(sysconfig.get_path("stdlib"))
    paths = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(set(folders) - _SKIPPED_FOLDERS)
        # _sysconfigdata and its kind hold the paths of the machine that built Python
        paths += [Path(folder, f) for f in names if f.endswith(".py") and "sysconfigdata" not in f]
    if not paths:
        raise ValueError(
            f"this Python has no source files under {root} (a zipped or frozen standard library). "
            "Give your own text with --data."
        )
    return sorted(paths)


def _printable(path: Path | str) -> str:
    """A path without the lone surrogates that stand for bytes that are not UTF-8."""
    return str(path).encode(errors="backslashreplace").decode()


def _counts(kinds: Counter[str]) -> str:
    largest = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{kind} {n}" for kind, n in largest[:6]) + (", ..." if len(kinds) > 6 else "")


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


def _read_source_file(file: SourceFile, skipped: list[str] | None) -> Iterator[Document]:
    """Named by module, so that copies of a module in other packages land in the same split."""
    path = file.path
    name = path.stem if path.stem not in ("__init__", "__main__") else path.parent.name
    text = path.read_text(encoding="utf-8", errors="replace")  # a few declare another encoding
    if text:
        yield Document(name.strip("_").lower(), text)


def _read_text(file: SourceFile, skipped: list[str] | None) -> Iterator[Document]:
    """Cut at line ends into documents of `DOCUMENT_CHARS` or a little more."""
    if skipped is not None:  # the whole file or nothing of it, so it is decoded once before
        try:
            for _ in _decode(file):
                pass
        except _Undecodable as e:
            skipped.append(str(e))
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
            if n_bytes == 0 and block.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise _Undecodable(f"{file.shown} is not UTF-8 but UTF-16")
            if n_bytes == 0 and b"\0" in block[:8192]:
                raise _Undecodable(f"{file.shown} is not UTF-8 text but binary (byte 0 at byte {block.index(0)})")
            n_bytes += len(block)
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as e:
                line, place = n_lines + e.object.count(b"\n", 0, e.start), n_bytes - len(e.object) + e.start
                raise _Undecodable(f"{file.shown}, line {line} is not UTF-8 ({e.reason} at byte {place})") from e
            yield text
            n_lines += text.count("\n")
            if not block:
                return


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
                text = line.removeprefix(codecs.BOM_UTF8).decode("utf-8")
            except UnicodeDecodeError as e:
                _skip(f"{where} is not UTF-8 ({e.reason} at byte {e.start} of the line)", skipped)
                continue
            try:
                row = json.loads(text) if text.strip() else {"text": ""}
            except (ValueError, RecursionError) as e:
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
        raise _Undecodable(problem)
    skipped.append(problem)


_READERS: dict[str, Reader] = {
    ".txt": _read_text,
    ".jsonl": _read_json_lines,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
}
