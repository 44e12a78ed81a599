"""Text sources: the standard library's own files, or the user's `.txt`, `.jsonl`, Parquet and Arrow files.

`.txt` and `.jsonl` may be compressed (`.gz`, `.zst`). Arrow files are what a folder saved by Hugging Face
`datasets` holds. Parquet, Arrow and `.zst` need `pip install 'upalm[data]'`.
"""

import gzip
import hashlib
import io
import json
import os
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

STDLIB = "stdlib"
"""The name of the embedded corpus: every machine with Python has it, nothing is downloaded."""


_SKIPPED_FOLDERS = {
    *("test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "_bundled"),
    *("encodings", "pydoc_data"),  # generated tables and help topics, not source text
}


_DOCUMENT_BYTES = 8192


class Document(NamedTuple):
    """A piece of text and the name that decides its split."""

    name: str
    text: str
    """Or the targets of a supervised example."""
    inputs: str | None = None
    """The inputs of a supervised example; None for plain text."""


class Corpus(NamedTuple):
    """Train and validation documents, and what was skipped because it is not UTF-8."""

    train: list[Document]
    validation: list[Document]
    skipped: list[str]


def load(source: str, *, skip_undecodable: bool = False) -> Corpus:
    """Read all of `source` and split it by name.

    Args:
        source: see `documents`.
        skip_undecodable: leave out what is not UTF-8 and count it, instead of stopping.

    Raises:
        ValueError: as `documents`; or too little text to hold any out for validation.
    """
    skipped: list[str] = []
    found = list(documents(source, skipped=skipped if skip_undecodable else None))
    train = [d for d in found if not is_validation(d.name)]
    validation = [d for d in found if is_validation(d.name)]
    if not train or not validation:
        n_bytes = sum(len(d.text.encode()) for d in found)
        raise ValueError(
            f"{source!r} gives {len(train)} training and {len(validation)} validation documents "
            f"from {n_bytes} bytes. Both are needed: give more text (100 KB is a good start)."
        )
    return Corpus(train, validation, skipped)


def documents(source: str, *, skipped: list[str] | None = None) -> Iterator[Document]:
    """Non-empty documents in a fixed order, read as they are asked for.

    Args:
        source: `"stdlib"`, a file, or a folder searched recursively for files of the kinds above. JSON objects
            and table rows have a `text`, or `inputs` and `targets`.
        skipped: if given, files (of JSON lines: lines) that are not UTF-8 are named here and left out.

    Raises:
        ValueError: missing or empty source, undecodable file, malformed row; file and line are named.
    """
    n = 0
    for path, read in files(source):
        for document in read(path, skipped):
            n += 1
            yield document
    if n == 0:
        raise ValueError(f"no text in {source!r}: expected non-empty files of {', '.join(_READERS)}.")


def is_validation(name: str) -> bool:
    """One name in ten, by its hash: the split does not depend on order, machine or Python version."""
    return hashlib.sha256(name.encode()).digest()[0] * 10 < 256


Reader = Callable[[Path, list[str] | None], Iterator[Document]]


def files(source: str) -> list[tuple[Path, Reader]]:
    """Files of a source with their readers, in a fixed order.

    Raises:
        ValueError: there is no such file or folder, or its kind is not known.
    """
    if source == STDLIB:
        return [(p, _read_source_file) for p in _stdlib_files()]
    root = Path(source)
    if not root.exists():
        raise ValueError(
            f"no such file or folder: {source!r}. Give a file of {', '.join(_READERS)}, a folder of them, "
            f"or {STDLIB!r} for Python's own source files."
        )
    paths = sorted(p for p in root.rglob("*") if _kind(p)) if root.is_dir() else [root]
    if root.is_file() and not _kind(root):
        raise ValueError(f"{source!r} ends in {root.suffix!r}: expected one of {', '.join(_READERS)}.")
    return [(p, _READERS[_kind(p)]) for p in paths]


def _kind(path: Path) -> str:
    """The suffix that says how to read a file, without that of its compression; empty if unknown."""
    suffix = Path(path.stem).suffix if path.suffix in (".gz", ".zst") else path.suffix
    return suffix if suffix in _READERS and (suffix == path.suffix or suffix in (".txt", ".jsonl")) else ""


def _stdlib_files() -> list[Path]:
    root = Path(sysconfig.get_path("stdlib"))
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(set(folders) - _SKIPPED_FOLDERS)
        # _sysconfigdata and its kind hold the paths of the machine that built Python
        found += [Path(folder, f) for f in names if f.endswith(".py") and "sysconfigdata" not in f]
    if not found:
        raise ValueError(
            f"this Python has no source files under {root} (a zipped or frozen standard library). "
            "Give your own text with --data."
        )
    return sorted(found)


def _read_source_file(path: Path, skipped: list[str] | None) -> Iterator[Document]:
    """Named by module, so that copies of a module in other packages land in the same split."""
    name = path.stem if path.stem not in ("__init__", "__main__") else path.parent.name
    text = path.read_text(encoding="utf-8", errors="replace")  # a few declare another encoding
    if text:
        yield Document(name.strip("_").lower(), text)


def _read_text(path: Path, skipped: list[str] | None) -> Iterator[Document]:
    """Long files are cut at line ends into documents of about 8 KiB, so that some can be held out."""
    with _opened(path) as f:
        try:
            lines = f.read().decode("utf-8").splitlines(keepends=True)
        except UnicodeDecodeError as e:
            return _skip(str(path), e, skipped)
    held, size, n = [], 0, 0
    for line in lines:
        held.append(line)
        size += len(line)
        if size >= _DOCUMENT_BYTES:
            yield Document(f"{path.name}:{n}", "".join(held))
            held, size, n = [], 0, n + 1
    if held:
        yield Document(f"{path.name}:{n}", "".join(held))


def _read_json_lines(path: Path, skipped: list[str] | None) -> Iterator[Document]:
    with _opened(path) as f:
        for n, line in enumerate(f, start=1):  # bytes: cut at "\n" alone, JSON strings may hold U+2028
            where = f"{path}, line {n}"
            try:
                row = json.loads(line.decode("utf-8")) if line.strip() else None
            except UnicodeDecodeError as e:
                _skip(where, e, skipped)
                continue
            except json.JSONDecodeError as e:
                raise ValueError(f"{where}: not JSON ({e}).") from e
            if row is not None:
                yield from _document(f"{path.name}:{n}", row, where)


def _read_parquet(path: Path, skipped: list[str] | None) -> Iterator[Document]:
    parquet = _pyarrow("parquet", path)
    yield from _read_batches(path, parquet.ParquetFile(path).iter_batches())


def _read_arrow(path: Path, skipped: list[str] | None) -> Iterator[Document]:
    ipc = _pyarrow("ipc", path)
    with path.open("rb") as f:
        yield from _read_batches(path, ipc.open_stream(f))


def _read_batches(path: Path, batches: Any) -> Iterator[Document]:
    n = 0
    for batch in batches:
        columns = [c for c in ("text", "inputs", "targets") if c in batch.schema.names]
        for row in batch.select(columns).to_pylist():
            n += 1
            yield from _document(f"{path.name}:{n}", row, f"{path}, row {n}")


def _document(name: str, row: Any, where: str) -> Iterator[Document]:
    wanted = ("inputs", "targets") if isinstance(row, dict) and "inputs" in row else ("text",)
    texts = [row.get(key) for key in wanted] if isinstance(row, dict) else [None]
    for key, text in zip(wanted, texts, strict=True):
        if not isinstance(text, str):
            raise ValueError(
                f'{where}: expected an object with a "text", or "inputs" and "targets": '
                f"{key!r} is {type(text).__name__}, expected a string."
            )
    if texts[-1]:
        yield Document(name, texts[-1], texts[0] if len(texts) == 2 else None)


_READERS: dict[str, Reader] = {
    ".txt": _read_text,
    ".jsonl": _read_json_lines,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
}


def _opened(path: Path) -> Any:
    if path.suffix == ".gz":
        return gzip.open(path, "rb")
    if path.suffix == ".zst":
        return io.BufferedReader(_pyarrow("input_stream", path)(str(path), compression="zstd"))
    return path.open("rb")


def _pyarrow(name: str, path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as e:
        raise ValueError(f"{path}: reading {path.suffix} needs pyarrow: pip install 'upalm[data]'.") from e
    return getattr(pyarrow, name)


def _skip(where: str, error: UnicodeDecodeError, skipped: list[str] | None) -> None:
    if skipped is None:
        raise ValueError(
            f"{where} is not UTF-8 ({error.reason} at byte {error.start}). Convert it, or pass "
            "--data.skip-undecodable to leave such text out (it is counted)."
        ) from error
    skipped.append(where)
