"""Text sources: the standard library's own files, or the user's `.txt`, `.jsonl` and folders."""

import hashlib
import json
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

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


class Corpus(NamedTuple):
    """Train and validation documents, and the files that were skipped because they are not UTF-8."""

    train: list[Document]
    validation: list[Document]
    skipped: list[str]


def load(source: str, *, skip_undecodable: bool = False) -> Corpus:
    """Read `source` and split it by name.

    Args:
        source: `"stdlib"`, a `.txt` or `.jsonl` file, or a folder of them (searched recursively).
        skip_undecodable: leave out files that are not UTF-8 and count them, instead of stopping.

    Raises:
        ValueError: missing or empty source, undecodable file, malformed JSON line, or too little text
            to hold any out for validation.
    """
    documents, skipped = [], []
    for path, read in _files(source):
        try:
            documents.extend(read(path))
        except UnicodeDecodeError as e:
            if not skip_undecodable:
                raise ValueError(
                    f"{path} is not UTF-8 ({e.reason} at byte {e.start}). Convert it, or pass "
                    "--data.skip-undecodable to leave such files out (they are counted)."
                ) from e
            skipped.append(str(path))
    documents = [d for d in documents if d.text]
    if not documents:
        raise ValueError(f"no text in {source!r}: expected non-empty .txt or .jsonl files.")
    train = [d for d in documents if not is_validation(d.name)]
    validation = [d for d in documents if is_validation(d.name)]
    if not train or not validation:
        n_bytes = sum(len(d.text.encode()) for d in documents)
        raise ValueError(
            f"{source!r} gives {len(train)} training and {len(validation)} validation documents "
            f"from {n_bytes} bytes. Both are needed: give more text (100 KB is a good start)."
        )
    return Corpus(train, validation, skipped)


def is_validation(name: str) -> bool:
    """One name in ten, by its hash: the split does not depend on order, machine or Python version."""
    return hashlib.sha256(name.encode()).digest()[0] * 10 < 256


def _files(source: str):
    """Pairs of a path and its reader, in a fixed order."""
    if source == STDLIB:
        return [(p, _read_source_file) for p in _stdlib_files()]
    root = Path(source)
    if not root.exists():
        raise ValueError(
            f"no such file or folder: {source!r}. Give a .txt or .jsonl file, a folder of them, "
            f"or {STDLIB!r} for Python's own source files."
        )
    readers = {".txt": _read_text, ".jsonl": _read_json_lines}
    paths = sorted(p for p in root.rglob("*") if p.suffix in readers) if root.is_dir() else [root]
    if root.is_file() and root.suffix not in readers:
        raise ValueError(f"{source!r} ends in {root.suffix!r}: expected .txt or .jsonl.")
    return [(p, readers[p.suffix]) for p in paths]


def _stdlib_files() -> list[Path]:
    root = Path(sysconfig.get_path("stdlib"))
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(set(folders) - _SKIPPED_FOLDERS)
        # _sysconfigdata and its kind hold the paths of the machine that built Python
        found += [Path(folder, f) for f in files if f.endswith(".py") and "sysconfigdata" not in f]
    if not found:
        raise ValueError(
            f"this Python has no source files under {root} (a zipped or frozen standard library). "
            "Give your own text with --data."
        )
    return sorted(found)


def _read_source_file(path: Path) -> Iterator[Document]:
    """Named by module, so that copies of a module in other packages land in the same split."""
    name = path.stem if path.stem not in ("__init__", "__main__") else path.parent.name
    text = path.read_text(encoding="utf-8", errors="replace")  # a few declare another encoding
    yield Document(name.strip("_").lower(), text)


def _read_text(path: Path) -> Iterator[Document]:
    """Long files are cut at line ends into documents of about 8 KiB, so that some can be held out."""
    # newline="" keeps "\r\n" as it is
    with open(path, encoding="utf-8", newline="") as f:
        lines = f.read().splitlines(keepends=True)
    held, size, n = [], 0, 0
    for line in lines:
        held.append(line)
        size += len(line)
        if size >= _DOCUMENT_BYTES:
            yield Document(f"{path.name}:{n}", "".join(held))
            held, size, n = [], 0, n + 1
    if held:
        yield Document(f"{path.name}:{n}", "".join(held))


def _read_json_lines(path: Path) -> Iterator[Document]:
    # split on "\n" only: str.splitlines also cuts at U+2028, which JSON strings may contain
    for n, line in enumerate(path.read_bytes().decode("utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)["text"]
        except (json.JSONDecodeError, KeyError, TypeError) as e:
            raise ValueError(
                f'{path}, line {n}: expected a JSON object with a "text" field ({type(e).__name__}: {e}).'
            ) from e
        if not isinstance(text, str):
            raise ValueError(f'{path}, line {n}: "text" is {type(text).__name__}, expected a string.')
        yield Document(f"{path.name}:{n}", text)
