"""JsonTokenizer: the tokenizer.json of an open checkpoint; load_tokenizer opens either kind."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from types import MappingProxyType
from typing import Any, ClassVar

from etils import epath

from upalm.data.hf_vocabulary import Vocabulary, without_changes_of_text
from upalm.data.roles import Roles
from upalm.data.tokenizer import LOW_LINE, SentencePiece, Tokenizer
from upalm.files import parse_json
from upalm.ul2r.symbols import MODES, N_SENTINELS, Symbols, find_line_breaks


class JsonTokenizer(Tokenizer):
    """A tokenizer.json in the format of Hugging Face tokenizers: byte-level, or with byte fallback.

    Text never encodes to a special token or a sentinel: special tokens written in it are characters, and a subword
    that serves as a sentinel is spelt in bytes. Steps that change text are left out
    (`hf_vocabulary.without_changes_of_text`).

    Args:
        content: of `tokenizer.json`.
        roles: BOS, EOS, sentinels and modes; see `roles.choose_roles`.
        companions: files that came with the checkpoint and go out with it, by name; they decide no id.

    Raises:
        ValueError: not a tokenizer, an id that is not in it, no pieces for bytes, or text that does not come back.
    """

    FILE: ClassVar = "tokenizer.json"
    ROLES_FILE: ClassVar = "symbols.json"
    SOURCE: ClassVar = "hf"
    """Folder, in a checkpoint, of the files that came with the imported one."""

    def __init__(self, content: bytes, roles: Roles, companions: Mapping[str, bytes] = MappingProxyType({})):
        self.companions = companions
        self.files = {self.FILE: content, self.ROLES_FILE: roles.to_bytes()}
        self.files |= {f"{self.SOURCE}/{name}": companion for name, companion in companions.items()}
        self.roles, self._vocabulary = roles, Vocabulary.read(content)
        self.sentinels_are = roles.sentinels_are
        self._missing_bytes = self._vocabulary.missing_bytes()
        self._tokenizer = _open(content, special=set(roles.sentinels))
        known = set(self._vocabulary.ids.values())
        self.vocab_size = max(*known, *roles.sentinels) + 1
        modes = {i for ids in roles.modes.values() for i in ids}
        if unknown := sorted({roles.bos_id, roles.eos_id, *modes} - known):
            raise ValueError(f"ids {unknown[:5]} are not in the vocabulary of {self.vocab_size}.")
        if len(set(roles.sentinels)) != N_SENTINELS:
            raise ValueError(f"{len(set(roles.sentinels))} different sentinels, expected {N_SENTINELS}.")
        if min(roles.sentinels) < 0 or modes & {*roles.sentinels, roles.bos_id, roles.eos_id}:
            raise ValueError(f"sentinels {roles.sentinels[:3]} ... and modes {sorted(modes)}: one role for each id.")
        self._check_modes()

    @cached_property
    def _modes(self) -> dict[str, tuple[int, ...]]:
        return {mode: tuple(self.roles.modes.get(mode) or self.encode(text)) for mode, text in MODES.items()}

    @cached_property
    def symbols(self) -> Symbols:  # pyright: ignore[reportIncompatibleVariableOverride]
        """BOS and EOS, sentinels in order, each mode's ids, ids that are no text, and where lines begin and end."""
        roles = self.roles
        generated = {roles.eos_id, *roles.sentinels}
        silent = tuple(i for i, text in enumerate(self.token_bytes) if not text and i not in generated)
        lines = find_line_breaks(self.token_bytes)
        return Symbols(tuple(roles.sentinels), self._modes, roles.eos_id, roles.bos_id, silent, **lines)

    @cached_property
    def token_bytes(self) -> list[bytes]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """See `Tokenizer`."""
        texts = [b""] * self.vocab_size
        silent = {*self._vocabulary.special, *self.roles.sentinels}
        for piece, i in self._vocabulary.ids.items():
            if i not in silent:
                texts[i] = self._vocabulary.text_of(piece)
        return texts

    @property
    def hashes(self) -> tuple[str, ...]:
        """See `Tokenizer`. Earlier versions hashed the bytes of all files, companions included."""
        described = parse_json(self.files[self.FILE])
        deciding = {key: described.get(key) for key in ("model", "added_tokens", "normalizer", "pre_tokenizer")}
        roles = {k: v for k, v in asdict(self.roles).items() if k != "sentinels_are"}
        identity = json.dumps([deciding, roles], sort_keys=True).encode()
        return tuple(hashlib.sha256(x).hexdigest()[:16] for x in (identity, *self._former_identities()))

    def _former_identities(self) -> list[bytes]:
        roles = {k: v for k, v in asdict(self.roles).items() if k != "modes"}
        start = self.files[self.FILE] + json.dumps(roles).encode() + b"\n"
        companions = [self.companions[name] for name in _FORMER_COMPANIONS if name in self.companions]
        return [start + b"".join(companions[:n]) for n in range(len(companions), -1, -1)]

    def can_spell(self, text: str) -> bool:
        """See `Tokenizer`."""
        content = text.encode()
        return not self._missing_bytes or len(content.translate(None, bytes(self._missing_bytes))) == len(content)

    def _encode_text(self, text: str) -> list[int]:
        self._check_bytes(text)
        if LOW_LINE in text and not self._vocabulary.is_byte_level:  # the vocabulary takes it for a space
            return self._encode_around_low_lines(text, self._vocabulary.spell(LOW_LINE.encode()))
        return self._spell_sentinels(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def _encode_texts(self, texts: list[str]) -> list[list[int]]:
        if not self._vocabulary.is_byte_level and any(LOW_LINE in text for text in texts):
            return [self._encode_text(text) for text in texts]
        for text in texts:
            self._check_bytes(text)
        return [self._spell_sentinels(e.ids) for e in self._tokenizer.encode_batch(texts, add_special_tokens=False)]

    def _check_bytes(self, text: str) -> None:
        if self._missing_bytes and not self.can_spell(text):
            character = next(c for c in text if not self.can_spell(c))
            byte = next(b for b in character.encode() if b in self._missing_bytes)
            raise ValueError(
                f"the vocabulary has no piece for the byte 0x{byte:02X}, which {character!r} (U+{ord(character):04X}) "
                f"at character {text.index(character)} of the text needs: leave such text out."
            )

    def _spell_sentinels(self, ids: list[int]) -> list[int]:
        if self._silent_pieces.keys().isdisjoint(ids):
            return ids
        spell, pieces = self._vocabulary.spell, self._silent_pieces
        return [spelt for i in ids for spelt in (spell(pieces[i]) if i in pieces else (i,))]

    @cached_property
    def _silent_pieces(self) -> dict[int, bytes]:
        """Text of each subword that is a sentinel, and of special tokens, which a unigram model finds in text."""
        silent, vocabulary = {*self.roles.sentinels, *self._vocabulary.special}, self._vocabulary
        return {i: vocabulary.text_of(piece) for piece, i in vocabulary.ids.items() if i in silent}

    def _decode_text(self, ids: list[int]) -> str:
        return b"".join(map(self.token_bytes.__getitem__, ids)).decode(errors="replace")


def load_tokenizer(path: epath.PathLike) -> Tokenizer:
    """Open the tokenizer of a checkpoint or of shards, or a SentencePiece model by its file.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    folder = epath.Path(path)
    if not folder.is_dir() or not (folder / JsonTokenizer.FILE).is_file():
        model = folder / SentencePiece.FILE if folder.is_dir() else folder
        if not model.is_file() or model.suffix == ".json":
            raise ValueError(
                f"no tokenizer at {path}: expected the folder of a checkpoint or of shards, or a SentencePiece model. "
                f"{_IMPORT_FIRST}"
            )
        return SentencePiece.load(model)
    content, roles = (_read(folder / name) for name in (JsonTokenizer.FILE, JsonTokenizer.ROLES_FILE))
    try:
        return JsonTokenizer(content, Roles.read(roles), companions(folder))
    except ValueError as e:
        raise ValueError(f"{folder}: {e}") from e


_IMPORT_FIRST = (
    "A checkpoint of Hugging Face, on disk or on the hub, has one once it is imported: `upalm import-hf SOURCE --out "
    "FOLDER` makes the folder to give."
)

_FORMER_COMPANIONS = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
"""Companions that earlier versions kept beside tokenizer.json."""


def companions(folder: epath.PathLike) -> dict[str, bytes]:
    """Read the files that came with an imported checkpoint, and those beside its tokenizer that belong to them."""
    folder, source = epath.Path(folder), epath.Path(folder) / JsonTokenizer.SOURCE
    paths = [*source.iterdir()] if source.is_dir() else []
    paths += [folder / name for name in _FORMER_COMPANIONS]
    return {path.name: path.read_bytes() for path in paths if path.is_file()}


def has_tokenizer(folder: epath.PathLike) -> bool:
    """Return whether `load_tokenizer` would find a tokenizer in a folder."""
    return any((epath.Path(folder) / name).is_file() for name in (JsonTokenizer.FILE, SentencePiece.FILE))


def _read(path: epath.Path) -> bytes:
    if not path.is_file():
        raise ValueError(f"no {path}: it belongs beside {JsonTokenizer.FILE}. {_IMPORT_FIRST}")
    return path.read_bytes()


def _open(content: bytes, special: set[int]) -> Any:
    """Open the library's tokenizer so that special tokens and sentinels in text are characters."""
    try:
        import tokenizers
    except ImportError as e:
        raise ValueError("a tokenizer.json needs the `tokenizers` package: pip install 'upalm[hf]'.") from e
    described = without_changes_of_text(parse_json(content))
    for token in described["added_tokens"]:
        token["special"] = token["special"] or token["id"] in special
    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(json.dumps(described).encode())  # `from_str` raises `Exception`
    except ValueError as e:
        raise ValueError(f"not a tokenizer.json: {e}.") from e
    tokenizer.encode_special_tokens = True
    return tokenizer
