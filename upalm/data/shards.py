"""Tokenised documents on disk: ArrayRecord shards and their manifest.

manifest.json               tokenizer hash, counts, sources, and each shard's blocks, size and checksum
tokenizer.model             SentencePiece; or tokenizer.json and symbols.json
train-00000.array_record    a record is a block: some whole documents, about 64 Ki tokens
train-00000.lengths         lengths of the documents, so that rows can be planned without reading text
validation-00000...         the tenth of the documents that is held out, by the hash of their names
"""

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from etils import epath

from upalm.data import sources
from upalm.data.readers import Document
from upalm.data.tokenizer import Tokenizer
from upalm.data.tokens import BUILD_APART, Tokens, encode, spelling_problem
from upalm.files import LOCK, is_remote, parse_json, sha256_file, write_atomically

SPLITS = ("train", "validation")

_FORMAT = 1
_BLOCK_TOKENS = 1 << 16
_SHARD_TOKENS = 1 << 26
_DOCUMENTS_AT_ONCE = 256

# --- Records --------------------------------------------------------------------------------------


def _to_bytes(tokens: Tokens, dtype: str) -> bytes:
    """Number of documents, lengths, numbers of inputs if supervised, ids; little-endian."""
    low, high, largest = tokens.ids.min(initial=0), tokens.ids.max(initial=0), np.iinfo(dtype).max
    if low < 0 or high > largest:
        raise ValueError(f"token ids are {low} to {high}: shards of {dtype} hold 0 to {largest}.")
    head = [np.array([len(tokens.lengths)]), tokens.lengths]
    head += [] if tokens.n_inputs is None else [tokens.n_inputs]
    return np.concatenate(head).astype("<i4").tobytes() + tokens.ids.astype(dtype).tobytes()


def _from_bytes(record: bytes, dtype: str, supervised: bool) -> Tokens:
    n = int(np.frombuffer(record, "<i4", 1)[0])
    head = np.frombuffer(record, "<i4", n * (1 + supervised), offset=4)
    ids = np.frombuffer(record, dtype, offset=4 + head.nbytes)
    offsets = np.concatenate([[0], np.cumsum(head[:n])])
    if offsets[-1] != len(ids):
        raise ValueError(f"a block of {n} documents has {len(ids)} tokens, expected {offsets[-1]}")
    return Tokens(ids, offsets, head[n:] if supervised else None)


# --- Reading --------------------------------------------------------------------------------------


@dataclass
class Shard:
    """A file of blocks, as the manifest describes it."""

    name: str
    split: str
    documents: int
    tokens: int
    block_tokens: list[int]
    block_documents: list[int]
    bytes: int
    sha256: str
    lengths_sha256: str


@dataclass
class Manifest:
    """Contents of a folder of shards, and the request that they answer."""

    format: int
    tokenizer_hash: str
    vocab_size: int
    dtype: str
    supervised: bool
    source: str
    documents: int = 0
    """Documents read from the source so far: where an interrupted build resumes."""
    complete: bool = False
    skipped: list[str] = field(default_factory=list)
    """Files, rows and documents that were left out, each with the reason."""
    skip_undecodable: bool = False
    """Whether undecodable text is left out, instead of stopping."""
    trained_vocab_size: int = 0
    """Size wanted of the vocabulary that was trained on the text; 0 if the tokenizer was given."""
    files: dict[str, int] = field(default_factory=dict)
    """Bytes of each source file, by its path within the source."""
    sha256: dict[str, str] = field(default_factory=dict)
    """Checksum of each source file; empty in shards of earlier versions."""
    shards: list[Shard] = field(default_factory=list)

    @classmethod
    def read(cls, folder: epath.PathLike) -> "Manifest":
        """Read `manifest.json`.

        Raises:
            ValueError: no manifest, or a damaged one, or one of another format.
        """
        path = epath.Path(folder) / "manifest.json"
        if not path.exists():
            raise ValueError(f"no shards at {folder}: it has no manifest.json. Build them with `upalm data build`.")
        try:
            content = parse_json(path.read_bytes())
            shards = [Shard(**shard) for shard in content.pop("shards")]
            manifest = cls(**content, shards=shards)
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise ValueError(f"{path} is no manifest of shards, or is damaged: {e}.") from e
        if manifest.format != _FORMAT:
            raise ValueError(f"{path} has format {manifest.format}, expected {_FORMAT}.")
        return manifest

    def write(self, folder: epath.Path) -> None:
        """Write `manifest.json`, whole or not at all."""
        write_atomically(folder / "manifest.json", json.dumps(asdict(self)) + "\n")

    def n_tokens(self, split: str) -> int:
        """Count the tokens of a split."""
        return sum(s.tokens for s in self.shards if s.split == split)


def manifest_hash(folder: str) -> str:
    """Return the SHA-256 of a folder's manifest, which holds the checksum of every shard."""
    return sha256_file(epath.Path(folder) / "manifest.json")


def is_folder_of_shards(source: str) -> bool:
    """Tell whether `build` wrote `source` (a checkpoint, too, has a manifest)."""
    path = epath.Path(source) / "manifest.json"
    return path.exists() and b'"shards"' in path.read_bytes()


class Shards:
    """The documents of a split, read block by block in any order."""

    def __init__(self, folder: str, split: str, *tokenizer_hashes: str):
        """Check sizes, record counts and document lengths of every shard; ArrayRecord checks each block it reads.

        Raises:
            ValueError: an unfinished build, another tokenizer, or a shard that is missing or damaged, by name.
        """
        self.folder, self.manifest = epath.Path(folder), Manifest.read(folder)
        if not self.manifest.complete:
            raise ValueError(f"{folder} is unfinished: run the same `upalm data build` again to resume it.")
        if self.manifest.tokenizer_hash not in tokenizer_hashes:
            raise ValueError(
                f"{folder} was tokenised with {self.manifest.tokenizer_hash}, the model has {tokenizer_hashes[0]}: "
                f"build it again with the model's tokenizer (--tokenizer)."
            )
        self.shards = [s for s in self.manifest.shards if s.split == split]
        if not self.shards:
            raise ValueError(f"{folder} has no {split} documents.")
        self.is_supervised = self.manifest.supervised
        self.block_tokens = np.concatenate([np.array(s.block_tokens) for s in self.shards])
        self.n_tokens = int(self.block_tokens.sum())
        self._lengths = np.concatenate([self._read_lengths(s) for s in self.shards])
        n_documents = np.concatenate([np.array(s.block_documents) for s in self.shards])
        self._first_documents = np.concatenate([[0], np.cumsum(n_documents)])
        self._first_blocks = np.concatenate([[0], np.cumsum([len(s.block_tokens) for s in self.shards])])
        self._readers: dict[int, Any] = {}

    def _read_lengths(self, shard: Shard) -> np.ndarray:
        """Lengths of the documents of a shard, whose files are checked."""
        path, lengths = self.folder / shard.name, self.folder / _lengths_name(shard.name)
        for p in (path, lengths):
            if not p.exists():
                raise ValueError(f"{p} is missing, though the manifest names it: restore it, or build again.")
        if path.stat().length != shard.bytes:
            raise ValueError(f"{path} has {path.stat().length} bytes, the manifest says {shard.bytes}: it is damaged.")
        content = lengths.read_bytes()
        if hashlib.sha256(content).hexdigest() != shard.lengths_sha256:
            raise ValueError(f"{lengths} is damaged: its checksum is not the manifest's.")
        document_lengths = np.frombuffer(content, "<i4")
        blocks = np.split(document_lengths, np.cumsum(shard.block_documents)[:-1])
        if [int(block.sum()) for block in blocks] != shard.block_tokens or len(document_lengths) != shard.documents:
            raise ValueError(f"{lengths} and the manifest count differently: one of them is damaged.")
        return document_lengths

    def check(self) -> None:
        """Read every shard against its checksum.

        Raises:
            ValueError: with the name of a shard that differs.
        """
        for shard in self.shards:
            if sha256_file(self.folder / shard.name) != shard.sha256:
                raise ValueError(f"{self.folder / shard.name} is damaged: its checksum is not the manifest's.")

    def block_lengths(self, blocks: np.ndarray) -> np.ndarray:
        """Return the lengths of the documents of some blocks, in order."""
        first = self._first_documents
        return np.concatenate([self._lengths[first[b] : first[b + 1]] for b in blocks])

    def read(self, blocks: np.ndarray) -> Tokens:
        """Return the documents of some blocks, in order.

        Raises:
            ValueError: a block cannot be read; its shard is named.
        """
        tokens = _merge([self._read(int(b)) for b in blocks])
        return tokens._replace(ids=tokens.ids.astype(np.int32))

    def _read(self, block: int) -> Tokens:
        i = int(np.searchsorted(self._first_blocks, block, side="right")) - 1
        path = self.folder / self.shards[i].name
        try:
            if i not in self._readers:
                self._readers[i] = ArrayRecordReader(str(path), "readahead_buffer_size:0")
            record = self._readers[i].read([block - int(self._first_blocks[i])])[0]
            return _from_bytes(record, self.manifest.dtype, self.is_supervised)
        except (RuntimeError, ValueError, IndexError) as e:
            raise ValueError(f"{path} is damaged: block {block} cannot be read ({e}).") from e

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_readers": {}}  # open files do not travel to loader processes


# --- Building -------------------------------------------------------------------------------------


def build(
    source: str | sources.TextSource,
    folder: str,
    tokenizer: Tokenizer,
    *,
    trained_vocab_size: int = 0,
    shard_tokens: int = _SHARD_TOKENS,
    progress: Callable[[int, int], None] = lambda documents, tokens: None,
) -> Manifest:
    """Tokenise a source into shards. Called again after an interruption, it resumes after the last whole shard.

    All text is read once before any of it is tokenised, so that what is wrong with it is told before hours of work.

    Args:
        source: text files; a string is as `TextSource` takes it.
        folder: where shards are written.
        tokenizer: stored beside the shards.
        trained_vocab_size: size wanted of the vocabulary, if the tokenizer was trained on this text.
        shard_tokens: tokens after which a new shard begins.
        progress: called with the documents and tokens so far.

    Raises:
        ValueError: a source that `TextSource` refuses, or too small for both splits; or a folder that answers another
            request, or lies in the source.
        OSError: a shard could not be written; those before it are whole.
    """
    if shard_tokens < 1:
        raise ValueError(f"shard_tokens is {shard_tokens}, expected at least 1.")
    text = sources.TextSource(source) if isinstance(source, str) else source
    out, manifest = epath.Path(folder), _open_manifest(text, folder, tokenizer, trained_vocab_size)
    if manifest.complete:
        for split in SPLITS:
            Shards(folder, split, *tokenizer.hashes)  # refuses what is missing or cut short
        return manifest
    is_held_out, manifest.supervised = _look_through(text, tokenizer)
    if not manifest.shards:
        out.mkdir(parents=True, exist_ok=True)
        tokenizer.save(out)
        manifest.write(out)
    documents = text.documents(partial(spelling_problem, tokenizer))
    for _ in islice(documents, manifest.documents):  # tokenised before the interruption
        pass
    while True:
        done = manifest.documents, sum(s.tokens for s in manifest.shards)
        blocks, n_read = _next_shard(documents, is_held_out, tokenizer, shard_tokens, done, progress)
        if n_read == 0:
            break
        with _writing(out):
            for split in SPLITS:
                if blocks[split]:
                    number = sum(s.split == split for s in manifest.shards)
                    name = f"{split}-{number:05d}.array_record"
                    manifest.shards.append(_write_shard(out, name, split, blocks[split], manifest.dtype))
            manifest.documents += n_read
            manifest.skipped = list(text.skipped)
            manifest.write(out)
    manifest.complete, manifest.skipped = True, list(text.skipped)
    with _writing(out):
        manifest.write(out)
    return manifest


def _look_through(text: sources.TextSource, tokenizer: Tokenizer) -> tuple[Callable[[str], bool], bool]:
    """Read all documents of a source. Returns what tells which are held out, and whether they are supervised.

    Raises:
        ValueError: text that cannot be read or spelt, that is of both kinds, or that is too little for both splits.
    """
    check = partial(spelling_problem, tokenizer)
    is_held_out = sources.choose_held_out(text.documents(check))
    n_documents, is_supervised = Counter(), None
    for document in text.documents(check):
        if is_supervised not in (None, document.inputs is not None):
            raise ValueError(
                f"{text.source!r} has both plain text and (inputs, targets) examples, such as {document.name}: "
                f"{BUILD_APART}"
            )
        is_supervised = document.inputs is not None
        n_documents[is_held_out(document.name)] += 1
    sources.check_splits(text.source, n_documents[False], n_documents[True])
    return is_held_out, bool(is_supervised)


@contextmanager
def _writing(out: epath.Path) -> Iterator[None]:
    """Raise OSError for errors of the disk; ArrayRecord raises RuntimeError."""
    try:
        yield
    except (OSError, RuntimeError) as e:
        reason = str(e).strip().split("\n")[-1][:300]
        raise OSError(
            f"the next shards of {out} could not be written ({reason}). Those before are whole: once there is room, "
            "the same command resumes after them."
        ) from e


def _open_manifest(text: sources.TextSource, folder: str, tokenizer: Tokenizer, trained_vocab_size: int) -> Manifest:
    """Return the manifest of an earlier build that answers the same request, or else a new one, unwritten."""
    out = epath.Path(folder)
    dtype = "<u2" if tokenizer.vocab_size <= 1 << 16 else "<i4"
    request = Manifest(
        _FORMAT,
        tokenizer.hash,
        tokenizer.vocab_size,
        dtype,
        supervised=False,
        source=text.source,
        skip_undecodable=text.skip_undecodable,
        trained_vocab_size=trained_vocab_size,
        files={file.name: file.path.stat().st_size for file in text.files},
        sha256=text.checksums(),
    )
    if out.exists() and not out.is_dir():
        raise ValueError(f"{folder} is a file: choose another --out.")
    if not is_remote(out) and text.holds(out):
        raise ValueError(f"{folder} lies in the text, {text.source}: choose another --out.")
    names = {path.name for path in out.iterdir() if path.suffix != ".new"} - {LOCK} if out.exists() else set()
    tokenizer_names = {name.partition("/")[0] for name in tokenizer.files}
    if names <= tokenizer_names:  # empty, or interrupted before the manifest was written
        for name, content in tokenizer.files.items():
            if (out / name).is_file() and (out / name).read_bytes() != content:
                raise ValueError(f"{folder} holds another {name}: choose another --out, or give it as --tokenizer.")
        return request
    if "manifest.json" not in names:
        raise ValueError(f"{folder} holds other files, such as {sorted(names)[0]}: choose another --out.")
    manifest = Manifest.read(out)
    if manifest.tokenizer_hash in tokenizer.hashes:
        request.tokenizer_hash = manifest.tokenizer_hash
    if differences := _differences(manifest, request):
        raise ValueError(
            f"{folder} holds shards of another request ({'; '.join(differences)}): choose another --out, or delete it."
        )
    if not manifest.complete:
        manifest.skip_undecodable = request.skip_undecodable
    if not tokenizer_names <= names:
        tokenizer.save(out)
    return manifest


def _differences(manifest: Manifest, request: Manifest) -> list[str]:
    """Describe how the request of stored shards differs from this one."""
    differences = []
    if manifest.tokenizer_hash != request.tokenizer_hash:
        differences.append(f"tokenizer {manifest.tokenizer_hash} stored, {request.tokenizer_hash} requested")
    if manifest.trained_vocab_size != request.trained_vocab_size and manifest.sha256:
        sizes = f"{manifest.trained_vocab_size or 'given'} stored, {request.trained_vocab_size or 'given'} requested"
        differences.append(f"vocabulary: {sizes}")
    if not manifest.sha256:  # earlier versions have sizes alone, under other names
        if sorted(manifest.files.values()) != sorted(request.files.values()):
            differences.append("other source files")
    elif manifest.sha256 != request.sha256:
        names = sorted(manifest.sha256.keys() | request.sha256.keys())
        changed = [name for name in names if manifest.sha256.get(name) != request.sha256.get(name)]
        differences.append(f"{len(changed)} other source files, such as {changed[0]}")
    # what is left out decides the documents, once any are tokenised
    decided = manifest.skipped if manifest.complete else manifest.documents
    if manifest.skip_undecodable != request.skip_undecodable and decided:
        differences.append(f"skip_undecodable {manifest.skip_undecodable} stored, {request.skip_undecodable} requested")
    return differences


def _next_shard(
    documents: Iterator[Document],
    is_held_out: Callable[[str], bool],
    tokenizer: Tokenizer,
    shard_tokens: int,
    done: tuple[int, int],
    progress: Callable[[int, int], None],
) -> tuple[dict[str, list[Tokens]], int]:
    """Tokenise the next shard of each split: its blocks, and the documents read."""
    blocks: dict[str, list[Tokens]] = {split: [] for split in SPLITS}
    pending: dict[str, list[Tokens]] = {split: [] for split in SPLITS}
    n_tokens, n_read = 0, 0

    def close(split: str) -> None:
        if pending[split]:
            blocks[split].append(_merge(pending[split]))
            pending[split] = []

    while n_tokens < shard_tokens and (chunk := list(islice(documents, _DOCUMENTS_AT_ONCE))):
        n_read += len(chunk)
        for split in SPLITS:
            members = [d for d in chunk if is_held_out(d.name) == (split == "validation")]
            if not members:
                continue
            tokens = encode(tokenizer, members)
            n_tokens += tokens.n_tokens
            for block in _split_blocks(tokens):
                pending[split].append(block)
                if sum(t.n_tokens for t in pending[split]) >= _BLOCK_TOKENS:
                    close(split)
        progress(done[0] + n_read, done[1] + n_tokens)
    for split in SPLITS:
        close(split)
    return blocks, n_read


def _split_blocks(tokens: Tokens) -> Iterator[Tokens]:
    """Cut into blocks of whole documents."""
    first = 0
    for last in range(1, len(tokens.offsets)):
        start, end = tokens.offsets[first], tokens.offsets[last]
        if end - start >= _BLOCK_TOKENS or last == len(tokens.offsets) - 1:
            n_inputs = None if tokens.n_inputs is None else tokens.n_inputs[first:last]
            yield Tokens(tokens.ids[start:end], tokens.offsets[first : last + 1] - start, n_inputs)
            first = last


def _merge(parts: list[Tokens]) -> Tokens:
    lengths = np.concatenate([t.lengths for t in parts])
    n_inputs = None if parts[0].n_inputs is None else np.concatenate([t.n_inputs for t in parts])  # pyright: ignore
    return Tokens(np.concatenate([t.ids for t in parts]), np.concatenate([[0], np.cumsum(lengths)]), n_inputs)


def _write_shard(out: epath.Path, name: str, split: str, blocks: list[Tokens], dtype: str) -> Shard:
    """Write a shard under another name and move it into place, so that no half of one is ever read."""
    lengths = np.concatenate([b.lengths for b in blocks]).astype("<i4").tobytes()
    (out / _lengths_name(name)).write_bytes(lengths)
    # ArrayRecord reads from an object store, but writes to a disk only
    with tempfile.TemporaryDirectory() if is_remote(out) else nullcontext(out) as folder:
        new = epath.Path(folder) / f"{name}.new"
        try:
            writer = ArrayRecordWriter(str(new), "group_size:1")
            for block in blocks:
                writer.write(_to_bytes(block, dtype))
            writer.close()
            if is_remote(out):
                new.copy(out / name, overwrite=True)
            else:
                new.replace(out / name)
        except BaseException:
            new.unlink(missing_ok=True)
            raise
    return Shard(
        name=name,
        split=split,
        documents=sum(len(b.lengths) for b in blocks),
        tokens=sum(b.n_tokens for b in blocks),
        block_tokens=[b.n_tokens for b in blocks],
        block_documents=[len(b.lengths) for b in blocks],
        bytes=(out / name).stat().length,
        sha256=sha256_file(out / name),
        lengths_sha256=hashlib.sha256(lengths).hexdigest(),
    )


def _lengths_name(shard_name: str) -> str:
    return shard_name.removesuffix(".array_record") + ".lengths"
