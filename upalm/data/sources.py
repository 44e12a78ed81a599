"""Find the text files of a source, read their documents and split them.

`.txt` and `.jsonl` may be compressed (`.gz`, `.zst`). Arrow files are what a folder saved by Hugging Face `datasets`
holds. Parquet, Arrow and `.zst` need `pip install 'upalm[data]'`. Plain text of any other ending is read by a pattern.
"""

import fnmatch
import hashlib
import os
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from upalm.data import python_files
from upalm.data.readers import (
    DOCUMENT_CHARS,
    READERS,
    Document,
    SourceFile,
    Undecodable,
    kind_of,
    module_name,
    printable,
    read_file,
    read_source_file,
    read_text,
)
from upalm.files import sha256_file

STDLIB = "stdlib"
"""The name of the embedded corpus: every machine with Python has it, nothing is downloaded."""

INSTALLED = "installed"
"""The name of a larger one: the standard library, and the sources of the packages that upalm depends on."""

_PIECE_CHARS = 1000


class Corpus(NamedTuple):
    """Documents for training and validation, and the places of text that was left out."""

    train: list[Document]
    validation: list[Document]
    skipped: list[str]

    def find_repeated(self) -> list[str]:
        """Return the names of the held-out documents whose whole text is also a training document, by its hash."""
        trained_on = {_hash_text(d) for d in self.train}
        return [d.name for d in self.validation if _hash_text(d) in trained_on]


Check = Callable[[Document], str | None]
"""Says what is wrong with a document; None if nothing is."""


def no_check(document: Document) -> None:
    """The `Check` that every document passes."""


@dataclass
class TextSource:
    """Files of text and how they are read.

    Raises:
        ValueError: no such file or folder, a folder without text or of shards, or a kind that is not known.
    """

    source: str
    """`stdlib`, `installed`, a file, or a folder that is searched recursively. Rows of JSON and tables have a `text`,
    or `inputs` and `targets`."""
    include: tuple[str, ...] = ()
    """Patterns such as `*.py`: exactly the matching files are read, as plain text if their kind is not known. Without
    any, files of the known kinds."""
    skip_undecodable: bool = False
    """Leave out text that is not UTF-8, or that the tokenizer cannot spell, and list it, instead of stopping: rows of
    JSON and tables alone, files of plain text whole."""
    options: tuple[str, ...] = ()
    """Options of the command in hand that hints in errors may name; none in Python."""
    files: list[SourceFile] = field(init=False, repr=False)
    """In the order of their paths."""
    other: Counter[str] = field(init=False, repr=False)
    """Files of a folder that are not read, by their ending."""
    n_copies: int = field(init=False, repr=False, default=0)
    """Files of `installed` that are not read because another one has their text; held-out ones are read first."""
    skipped: list[str] = field(init=False, repr=False, default_factory=list)
    """Files, rows and documents that `documents` left out, each with the reason."""
    repeated: list[str] = field(init=False, repr=False, default_factory=list)
    """Held-out documents that `load` found in the training text, too; see `Corpus.find_repeated`."""
    drops_repeated: bool = field(init=False, repr=False, default=False)
    """Whether `load` left them out."""

    def __post_init__(self):
        if isinstance(self.source, os.PathLike):
            self.source = str(self.source)
        self.include = (self.include,) if isinstance(self.include, str) else tuple(self.include)
        self.other = Counter()
        if self.source in (STDLIB, INSTALLED):
            paths = python_files.stdlib_files()
            if self.source == INSTALLED:
                paths += python_files.package_files()
                held_out = {path for path in paths if is_validation(module_name(path))}
                self.n_copies = len(paths) - len(paths := python_files.without_copies(paths, held_out))
            self.files = [SourceFile(p, printable(p), read_source_file) for p in paths]
            return
        root = Path(self.source) if isinstance(self.source, str) and self.source.strip() else None
        if root is None or not root.exists():
            raise ValueError(
                f"no such file or folder: {self.source!r}. Give a file of {', '.join(READERS)}, a folder of them, "
                f"{STDLIB!r} for Python's own source files, or {INSTALLED!r} for those of installed packages, too."
            )
        names = {p: p.relative_to(root) for p in _walk(root)} if root.is_dir() else {root: Path(root.name)}
        self._shard_folders = {path.parent for path in names if path.suffix == ".array_record" and path != root}
        if root in self._shard_folders:
            state = "are tokenised already" if (root / "manifest.json").is_file() else "lack their manifest.json"
            raise ValueError(f"{self.source!r} holds shards of `upalm data build`, no text, which {state}.")
        self.files = [
            SourceFile(path, printable(name.as_posix()), READERS.get(kind_of(path), read_text))
            for path, name in names.items()
            if self._takes(path, name)
        ]
        if not self.files:
            what = f" match {' '.join(self.include)}" if self.include else f" are of {', '.join(READERS)}"
            files = f"none of {self.other.total()} files ({_counts(self.other)}){what}" if self.other else "it is empty"
            raise ValueError(f"no text in {self.source!r}: {files}. {self._include_hint()}")

    def documents(self, check: Check = no_check) -> Iterator[Document]:
        """Yield non-empty documents in a fixed order, each as soon as it is read.

        Args:
            check: a document that does not pass counts as undecodable.

        Raises:
            ValueError: an undecodable or damaged file or a malformed row, by file and line; or no text at all.
        """
        self.skipped, n = [], 0
        for file in self.files:
            for document in self._read(file):
                n += 1
                if (problem := check(document)) is None:
                    yield document
                elif self.skip_undecodable:
                    self.skipped.append(f"{document.name}: {problem}")
                else:
                    raise ValueError(f"{document.name}: {problem}, as {self._skip_option()} does.")
        if n == 0:
            left_out = f" (left out: {', '.join(self.skipped[:3])})" if self.skipped else ""
            raise ValueError(f"no text in {self.source!r}: its {len(self.files)} files are empty{left_out}.")

    def load(self, check: Check = no_check, *, keep_repeated: bool = True) -> Corpus:
        """Read all documents and split them by name.

        Args:
            check: see `documents`.
            keep_repeated: keep held-out documents that are also in the training text, word for word.

        Raises:
            ValueError: as `documents`; or too little text to hold any out for validation; or all that is held out is
                left out.
        """
        documents = list(self.documents(check))
        is_held_out = choose_held_out(documents)
        train = [d for d in documents if not is_held_out(d.name)]
        validation = [d for d in documents if is_held_out(d.name)]
        check_splits(self.source, len(train), len(validation))
        corpus = Corpus(train, validation, self.skipped)
        self.repeated, self.drops_repeated = corpus.find_repeated(), not keep_repeated
        return corpus if keep_repeated else self._drop_repeated(corpus)

    def _drop_repeated(self, corpus: Corpus) -> Corpus:
        repeated = set(self.repeated)
        validation = [d for d in corpus.validation if d.name not in repeated]
        if not validation:
            raise ValueError(
                f"all {len(self.repeated)} held-out documents of {self.source!r} are also in its training text: give "
                "text whose documents differ."
            )
        return corpus._replace(validation=validation)

    def checksums(self) -> dict[str, str]:
        """Return the SHA-256 of each file, by its name."""
        try:
            return {file.name: sha256_file(file.path) for file in self.files}
        except OSError as e:
            raise ValueError(f"{printable(e.filename)}: it cannot be read ({e.strerror}).") from e

    def holds(self, path: str | os.PathLike[str]) -> bool:
        """Return whether a path lies in the folder that is read."""
        is_folder = self.source not in (STDLIB, INSTALLED) and Path(self.source).is_dir()
        return is_folder and Path(self.source).resolve() in Path(path).resolve().parents

    def notes(self) -> list[str]:
        """Return sentences on what was left out, and on held-out text that is trained on."""
        notes = []
        if self.other:
            notes.append(f"left out {self.other.total()} files of other kinds ({_counts(self.other)})")
        if self.n_copies:
            notes.append(f"left out {self.n_copies} files with the text of another")
        if self.skipped:
            more = ", ..." if len(self.skipped) > 5 else ""
            notes.append(f"left out {len(self.skipped)} texts: {'; '.join(self.skipped[:5])}{more}")
        if self.repeated:
            more = ", ..." if len(self.repeated) > 5 else ""
            left_out = ", and left out" if self.drops_repeated else ""
            notes.append(
                f"{len(self.repeated)} held-out document{'s are' if len(self.repeated) > 1 else ' is'} also in the "
                f"training text, word for word{left_out}: "
                f"{', '.join(self.repeated[:5])}{more}"
            )
        return notes

    def _takes(self, path: Path, within: Path) -> bool:
        """Decide whether to read a file; if not, count it."""
        name = within.as_posix().lower()
        hidden = path != Path(self.source) and any(part.startswith(".") for part in within.parts)
        of_shards = not self._shard_folders.isdisjoint(path.parents)
        if self.include:
            patterns = [p.lower() for p in self.include]
            matches = any(fnmatch.fnmatchcase(x, p) for p in patterns for x in (name, within.name.lower()))
        else:
            matches = bool(kind_of(path))
        if matches and not hidden and not of_shards:
            if not path.is_file():
                raise ValueError(f"{printable(path)}: a dangling link or no regular file, expected a file.")
            return True
        kind = "hidden" if hidden else "of shards" if of_shards else "".join(path.suffixes[-1:]).lower()
        self.other[kind or "no ending"] += 1
        return False

    def _read(self, file: SourceFile) -> Iterator[Document]:
        """Read a file; whatever is wrong with it becomes a ValueError that names it."""
        try:
            yield from read_file(file, self.skipped if self.skip_undecodable else None)
        except Undecodable as e:
            raise ValueError(
                f"{e}. Convert it to UTF-8, or leave such rows and whole files of plain text out with "
                f"{self._skip_option()} (they are listed)."
            ) from e

    def _skip_option(self) -> str:
        return self._option("skip-undecodable", "skip_undecodable=True")

    def _include_hint(self) -> str:
        ending = next((kind for kind, _ in self.other.most_common() if kind.startswith(".")), ".md")
        option = self._option(f"include '*{ending}'", f"include=['*{ending}']")
        return f"Plain text of any ending is read with {option}."

    def _option(self, words: str, in_python: str) -> str:
        """Say how to set this in the command in hand, or in Python."""
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
            f"document is a row, or {DOCUMENT_CHARS // 1024} KB of plain text: give more text (100 KB is a good start)."
        )


def _hash_text(document: Document) -> bytes:
    halves = (document.inputs or "", document.text)
    return hashlib.sha256("\0".join(half.strip() for half in halves).encode(errors="surrogatepass")).digest()


def is_validation(name: str) -> bool:
    """Tell by its hash whether a name is the one in ten that is held out, whatever the order and machine."""
    return _hash_name(name)[0] * 10 < 256


def choose_held_out(documents: Iterable[Document]) -> Callable[[str], bool]:
    """Return what tells by its name whether one of these documents is held out.

    That is `is_validation`; but where it holds out none of several, the name with the smallest hash is held out. Reads
    the documents up to the first that is held out.
    """
    names = []
    for document in documents:
        if is_validation(document.name):
            return is_validation
        names.append(document.name)
    if len(names) < 2:
        return is_validation
    least = min(names, key=_hash_name)
    return lambda name: name == least


def _hash_name(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def sample(
    documents: Iterable[Document],
    n_pieces: int = 4000,
    seed: int = 0,
    is_held_out: Callable[[str], bool] = is_validation,
) -> list[str]:
    """Draw pieces of 1000 characters from all training documents, every piece equally likely."""
    rng, pieces, n_seen = random.Random(seed), [], 0
    for document in documents:
        for text in () if is_held_out(document.name) else (document.inputs or "", document.text):
            for start in range(0, len(text), _PIECE_CHARS):
                n_seen += 1
                place = len(pieces) if len(pieces) < n_pieces else rng.randrange(n_seen)
                if place < n_pieces:
                    pieces[place : place + 1] = [text[start : start + _PIECE_CHARS]]
    rng.shuffle(pieces)
    return pieces


# --- Files ----------------------------------------------------------------------------------------


def _walk(root: Path) -> list[Path]:
    """Everything in a folder that is no folder, through links too, each folder once."""

    def refuse(e: OSError) -> None:
        raise ValueError(f"{printable(e.filename)}: the folder cannot be read ({e.strerror}).") from e

    paths, visited = [], set()
    for folder, folders, names in os.walk(root, onerror=refuse, followlinks=True):
        if (real := os.path.realpath(folder)) in visited:
            folders.clear()
            continue
        visited.add(real)
        paths += [Path(folder, name) for name in names]
    return sorted(paths)


def _counts(kinds: Counter[str]) -> str:
    largest = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{kind} {n}" for kind, n in largest[:6]) + (", ..." if len(kinds) > 6 else "")
