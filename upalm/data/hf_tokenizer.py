"""`JsonTokenizer`: the `tokenizer.json` of an open checkpoint, with sentinels found in its vocabulary; and
`load_tokenizer`, which opens either kind.
"""

import json
import re
from collections.abc import Mapping
from functools import cached_property
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

from etils import epath

from upalm.data.tokenizer import SentencePiece, Tokenizer, check_text
from upalm.ul2r.symbols import BOS_ID, EOS_ID, MODES, N_SENTINELS, UNK_ID, Symbols

_RESERVED = re.compile(r"^[<\[|]+(?:reserved(?:_special)?_token|reserved|unused|extra)_?(\d+)(?:_token)?[|\]>]+$", re.I)


_BYTE = re.compile(r"^<0x([0-9A-F]{2})>$")


class Roles(NamedTuple):
    """Ids with a role that the vocabulary itself does not tell; `symbols.json`."""

    bos_id: int
    eos_id: int
    sentinels: list[int]
    sentinels_are: str
    """How they were chosen, in words."""

    def to_bytes(self) -> bytes:
        """As JSON."""
        return json.dumps(self._asdict()).encode() + b"\n"


class JsonTokenizer(Tokenizer):
    """A `tokenizer.json` in the format of Hugging Face tokenizers: byte-level, or with byte fallback.

    Text never encodes to a special token or a sentinel: special tokens written in it are characters, and a subword
    that serves as sentinel is spelt in bytes. What the tokenizer's normaliser changes, if it has one, stays changed.

    Args:
        content: of `tokenizer.json`.
        roles: BOS, EOS and sentinels; see `choose_roles`.
        companions: files that other software reads beside it, by name; kept for exports.

    Raises:
        ValueError: not a tokenizer, an id that is not in it, no piece for some byte, or text that does not come back.
    """

    FILE: ClassVar = "tokenizer.json"
    ROLES_FILE: ClassVar = "symbols.json"
    COMPANIONS: ClassVar = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")

    def __init__(self, content: bytes, roles: Roles, companions: Mapping[str, bytes] = MappingProxyType({})):
        self.files = {self.FILE: content, self.ROLES_FILE: roles.to_bytes(), **companions}
        self.roles, self._vocabulary = roles, _Vocabulary.read(content)
        self.sentinels_are = roles.sentinels_are
        self._tokenizer = _open(content, special=set(roles.sentinels))
        self.vocab_size = max(self._vocabulary.ids.values()) + 1
        known = set(self._vocabulary.ids.values())
        if unknown := sorted({roles.bos_id, roles.eos_id, *roles.sentinels} - known):
            raise ValueError(f"ids {unknown[:5]} are not in the vocabulary of {self.vocab_size}.")
        if len(set(roles.sentinels)) != N_SENTINELS:
            raise ValueError(f"{len(set(roles.sentinels))} different sentinels, expected {N_SENTINELS}.")
        self._check_lossless()

    @cached_property
    def symbols(self) -> Symbols:  # pyright: ignore[reportIncompatibleVariableOverride]
        """BOS and EOS, sentinels in order, each mode's ids, and the ids that are no text."""
        roles, modes = self.roles, {k: tuple(self.encode(v)) for k, v in MODES.items()}
        written = {roles.eos_id, *roles.sentinels}
        silent = tuple(i for i, b in enumerate(self.token_bytes) if not b and i not in written)
        return Symbols(tuple(roles.sentinels), modes, roles.eos_id, roles.bos_id, silent)

    @cached_property
    def token_bytes(self) -> list[bytes]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """See `Tokenizer`."""
        found = [b""] * self.vocab_size
        silent = {*self._vocabulary.special, *self.roles.sentinels}
        for piece, i in self._vocabulary.ids.items():
            if i not in silent:
                found[i] = self._vocabulary.bytes_of(piece)
        return found

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer`."""
        check_text(text)
        return self._spelt(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def encode_documents(self, texts: list[str]) -> list[list[int]]:
        """See `Tokenizer`."""
        check_text(*texts)
        return [self._spelt(e.ids) for e in self._tokenizer.encode_batch(texts, add_special_tokens=False)]

    def _spelt(self, ids: list[int]) -> list[int]:
        if self._spellings.keys().isdisjoint(ids):
            return ids
        return [spelt for i in ids for spelt in self._spellings.get(i, (i,))]

    @cached_property
    def _spellings(self) -> dict[int, list[int]]:
        """Each sentinel's text in bytes."""
        sentinels, vocabulary = set(self.roles.sentinels), self._vocabulary
        pieces = {i: piece for piece, i in vocabulary.ids.items() if i in sentinels}
        return {i: [vocabulary.byte_ids[b] for b in vocabulary.bytes_of(piece)] for i, piece in pieces.items()}

    def _decode_text(self, ids: list[int]) -> str:
        return b"".join(self.token_bytes[i] for i in ids).decode(errors="replace")


def choose_roles(content: bytes, *, bos_id: int | None, eos_id: int | None) -> Roles:
    """The roles in the vocabulary of a `tokenizer.json` that has none for us.

    Sentinels are its own `<extra_id_0>` ... `<extra_id_99>`, else 100 of its reserved or unused tokens, else its last
    100 subwords, highest id first (U-PaLM section 11.3).

    Args:
        content: of `tokenizer.json`.
        bos_id: of the checkpoint; without one, EOS begins texts.
        eos_id: of the checkpoint; without one, BOS ends them.

    Raises:
        ValueError: neither BOS nor EOS, a damaged file, or too few subwords.
    """
    bos, eos = (eos_id if bos_id is None else bos_id), (bos_id if eos_id is None else eos_id)
    if bos is None or eos is None:
        raise ValueError("the tokenizer has neither a BOS nor an EOS token: give their ids in its config.json.")
    found = _Vocabulary.read(content)
    named = [found.ids.get(f"<extra_id_{i}>", -1) for i in range(N_SENTINELS)]
    if min(named) >= 0:
        return Roles(bos, eos, named, "the tokenizer's own <extra_id_0> to <extra_id_99>")
    reserved = sorted((i, piece) for piece, i in found.ids.items() if _RESERVED.match(piece) and i not in (bos, eos))
    if len(reserved) >= N_SENTINELS:
        reserved = reserved[:N_SENTINELS]
        return Roles(bos, eos, [i for i, _ in reserved], f"reserved tokens {reserved[0][1]} to {reserved[-1][1]}")
    fixed = {*found.byte_ids, *found.added, bos, eos}
    last = sorted(set(found.ids.values()) - fixed, reverse=True)[:N_SENTINELS]
    if len(last) < N_SENTINELS:
        raise ValueError(f"{len(last)} subwords beside bytes and special tokens: {N_SENTINELS} sentinels are needed.")
    return Roles(bos, eos, last, f"the last 100 subwords of the vocabulary, ids {last[0]} down to {last[-1]}")


def load_tokenizer(path: epath.PathLike) -> Tokenizer:
    """The tokenizer of a checkpoint or of shards, or a SentencePiece model by its file.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    folder = epath.Path(path)
    if not folder.is_dir() or not (folder / JsonTokenizer.FILE).is_file():
        return SentencePiece.load(folder / SentencePiece.FILE if folder.is_dir() else folder)
    content, roles = (_read(folder / name) for name in (JsonTokenizer.FILE, JsonTokenizer.ROLES_FILE))
    try:
        return JsonTokenizer(content, Roles(**json.loads(roles)), companions(folder))
    except (ValueError, TypeError) as e:
        raise ValueError(f"{folder}: {e}") from e


def companions(folder: epath.PathLike) -> dict[str, bytes]:
    """The files that other software reads beside a folder's tokenizer.json."""
    paths = [epath.Path(folder) / name for name in JsonTokenizer.COMPANIONS]
    return {path.name: path.read_bytes() for path in paths if path.is_file()}


def has_tokenizer(folder: epath.PathLike) -> bool:
    """Whether `load_tokenizer` would find one in a folder."""
    return any((epath.Path(folder) / name).is_file() for name in (JsonTokenizer.FILE, SentencePiece.FILE))


def _read(path: epath.Path) -> bytes:
    if not path.is_file():
        raise ValueError(f"no {path}: the folder of a tokenizer.json has it beside.")
    return path.read_bytes()


def _open(content: bytes, special: set[int]) -> Any:
    """The library's tokenizer, for which special tokens and sentinels in text are characters."""
    try:
        import tokenizers
    except ImportError as e:
        raise ValueError("a tokenizer.json needs the `tokenizers` package: pip install 'upalm[hf]'.") from e
    described = json.loads(content)
    for token in described.get("added_tokens", ()):
        token["special"] = token["special"] or token["id"] in special
    try:
        found = tokenizers.Tokenizer.from_buffer(json.dumps(described).encode())  # `from_str` raises a bare Exception
    except ValueError as e:
        raise ValueError(f"not a tokenizer.json: {e}.") from e
    found.encode_special_tokens = True
    found.no_truncation()
    found.no_padding()
    return found


# --- For other software ---------------------------------------------------------------------------


def to_json(tokenizer: Tokenizer) -> dict[str, bytes]:
    """The files from which Hugging Face software makes this tokenizer.

    Those of an open checkpoint come back as they were. A SentencePiece model becomes a `tokenizer.json` whose
    sentinels are special tokens `<extra_id_i>`: text that would use one of those 100 subwords, which `encode` spells
    in bytes, may be cut otherwise there.
    """
    if isinstance(tokenizer, SentencePiece):
        files = {JsonTokenizer.FILE: json.dumps(_unigram(tokenizer), ensure_ascii=False).encode()}
        ends = tokenizer.piece(BOS_ID), tokenizer.piece(EOS_ID)
    else:
        files = dict(tokenizer.files)
        pieces = {i: piece for piece, i in _Vocabulary.read(files[JsonTokenizer.FILE]).ids.items()}
        ends = pieces[tokenizer.symbols.bos_id], pieces[tokenizer.symbols.eos_id]
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": ends[0],
        "eos_token": ends[1],
        "clean_up_tokenization_spaces": False,
    }
    return {"tokenizer_config.json": json.dumps(config, indent=2).encode() + b"\n", **files}


def _unigram(tokenizer: SentencePiece) -> dict[str, Any]:
    numbers = {i: f"<extra_id_{n}>" for n, i in enumerate(tokenizer.symbols.sentinels)}
    vocab = [(numbers.get(i, tokenizer.piece(i)), tokenizer.piece_score(i)) for i in range(tokenizer.vocab_size)]
    special = [BOS_ID, EOS_ID, UNK_ID, *numbers]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": vocab[i][0], **flags} for i in sorted(special)],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {"type": "Unigram", "unk_id": UNK_ID, "vocab": vocab, "byte_fallback": True},
    }


# --- The vocabulary -------------------------------------------------------------------------------


class _Vocabulary(NamedTuple):
    """What the pieces of a `tokenizer.json` are, without the library."""

    ids: dict[str, int]
    added: set[int]
    special: set[int]
    byte_level: bool
    """Pieces are bytes in disguise (GPT-2's alphabet); else they are text, and `<0x0A>` is a byte."""
    byte_ids: list[int]
    """Id of each of the 256 bytes."""

    @classmethod
    def read(cls, content: bytes) -> "_Vocabulary":
        try:
            found = json.loads(content)
            pieces = found["model"]["vocab"]
            if isinstance(pieces, list):  # unigram: [piece, score]
                pieces = {piece: i for i, (piece, _) in enumerate(pieces)}
            added = {t["content"]: (t["id"], t["special"]) for t in found.get("added_tokens") or ()}
        except (ValueError, KeyError, TypeError) as e:
            raise ValueError(f"not a tokenizer.json with a vocabulary: {e!r}.") from e
        byte_level = '"ByteLevel"' in json.dumps([found.get("decoder"), found.get("pre_tokenizer")])
        ids = {**pieces, **{piece: i for piece, (i, _) in added.items()}}
        names = _BYTE_LEVEL if byte_level else [f"<0x{b:02X}>" for b in range(256)]
        if missing := [b for b, name in enumerate(names) if name not in ids]:
            raise ValueError(
                f"the vocabulary has no piece for {len(missing)} of the 256 bytes (such as {missing[0]}): "
                "byte-level tokenizers and those with byte fallback are supported."
            )
        special = {i for i, is_special in added.values() if is_special}
        return cls(ids, {i for i, _ in added.values()}, special, byte_level, [ids[name] for name in names])

    def bytes_of(self, piece: str) -> bytes:
        """The text of a piece, in UTF-8."""
        if self.ids[piece] in self.added:
            return piece.encode()
        if self.byte_level:
            return bytes(_BYTES[c] for c in piece) if _BYTES.keys() >= set(piece) else piece.encode()
        byte = _BYTE.match(piece)
        return bytes([int(byte[1], 16)]) if byte else piece.replace("▁", " ").encode()


def _byte_level_alphabet() -> list[str]:
    """GPT-2's letter of each byte: itself where it prints, else one of the letters from 256 on, in order."""
    prints = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(b if b in prints else next(others)) for b in range(256)]


_BYTE_LEVEL = _byte_level_alphabet()


_BYTES = {letter: byte for byte, letter in enumerate(_BYTE_LEVEL)}
