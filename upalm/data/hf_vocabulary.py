"""The vocabulary of a tokenizer.json: the bytes of each piece, read without the library."""

import json
import re
from typing import Any, NamedTuple

from upalm.data.tokenizer import LOW_LINE
from upalm.files import parse_json

_BYTE_PIECE = re.compile(r"^<0x([0-9A-F]{2})>$")
_NEVER_IN_UTF8 = {0xC0, 0xC1, *range(0xF5, 0x100)}


class Vocabulary(NamedTuple):
    """Pieces of a tokenizer.json and the text that they stand for."""

    ids: dict[str, int]
    """Id of each piece, added tokens included."""
    added: set[int]
    """Ids of added tokens, whose text is their piece."""
    special: set[int]
    """Ids of special tokens, which stand for no text."""
    is_byte_level: bool
    """Whether pieces are bytes in GPT-2's alphabet; else they are text, and `<0x0A>` is a byte."""
    byte_ids: list[int]
    """Id of each of the 256 bytes; -1 where the vocabulary has no piece for it."""

    @classmethod
    def read(cls, content: bytes) -> "Vocabulary":
        """Read the content of a tokenizer.json.

        Raises:
            ValueError: no vocabulary in it, or one without pieces for bytes.
        """
        try:
            described = parse_json(content)
            pieces = described["model"]["vocab"]
            if isinstance(pieces, list):  # unigram: [piece, score]
                pieces = {piece: i for i, (piece, _) in enumerate(pieces)}
            added = {t["content"]: (t["id"], t["special"]) for t in described.get("added_tokens") or ()}
        except (ValueError, KeyError, TypeError) as e:
            raise ValueError(f"not a tokenizer.json with a vocabulary: {e!r}.") from e
        is_byte_level = '"ByteLevel"' in json.dumps([described.get("decoder"), described.get("pre_tokenizer")])
        ids = {**pieces, **{piece: i for piece, (i, _) in added.items()}}
        names = BYTE_LETTERS if is_byte_level else [f"<0x{b:02X}>" for b in range(256)]
        byte_ids = [ids.get(name, -1) for name in names]
        special = {i for i, is_special in added.values() if is_special}
        vocabulary = cls(ids, {i for i, _ in added.values()}, special, is_byte_level, byte_ids)
        missing, n_rare = vocabulary.missing_bytes(), 128 if is_byte_level else 0  # rare bytes may be absent from BPE
        if len(missing) > n_rare:
            raise ValueError(
                f"the vocabulary has no piece for {len(missing)} of the 243 bytes of UTF-8 (such as "
                f"0x{min(missing):02X}): byte-level tokenizers and those with byte fallback are supported."
            )
        return vocabulary

    def text_of(self, piece: str) -> bytes:
        """Return the text of a piece, in UTF-8."""
        if self.ids[piece] in self.added:
            return piece.encode()
        if self.is_byte_level:
            return bytes(_BYTES[c] for c in piece) if _BYTES.keys() >= set(piece) else piece.encode()
        byte = _BYTE_PIECE.match(piece)
        return bytes([int(byte[1], 16)]) if byte else piece.replace(LOW_LINE, " ").encode()

    def spell(self, text: bytes) -> list[int]:
        """Return the ids of a text's bytes.

        Raises:
            ValueError: with the byte for which there is no piece.
        """
        if missing := [b for b in text if self.byte_ids[b] < 0]:
            raise ValueError(f"the vocabulary has no piece for the byte 0x{missing[0]:02X} of {text!r}.")
        return [self.byte_ids[b] for b in text]

    def missing_bytes(self) -> frozenset[int]:
        """Return the bytes that UTF-8 uses and that have no piece."""
        return frozenset(b for b, i in enumerate(self.byte_ids) if i < 0 and b not in _NEVER_IN_UTF8)


def _byte_letters() -> list[str]:
    """GPT-2's letter of each byte: itself where it prints, else one of the letters from 256 on, in order."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(b if b in printable else next(others)) for b in range(256)]


BYTE_LETTERS = _byte_letters()
_BYTES = {letter: byte for byte, letter in enumerate(BYTE_LETTERS)}


def without_changes_of_text(described: dict[str, Any]) -> dict[str, Any]:
    """Return a tokenizer.json without the steps that lose or add characters.

    Left out are a space put in front (Llama 2, Metaspace, GPT-2's option), Unicode normalisation to NFC (Qwen), and the
    spaces that an added token takes along (`lstrip`, `rstrip`). Ids differ from the original's only for such text.
    """
    tokens = [dict(t, lstrip=False, rstrip=False) for t in described.get("added_tokens") or ()]
    return described | {
        "added_tokens": tokens,
        "normalizer": _without_steps(described.get("normalizer"), "normalizers"),
        "pre_tokenizer": _without_steps(described.get("pre_tokenizer"), "pretokenizers"),
        **dict.fromkeys(("truncation", "padding", "post_processor")),
    }


def _without_steps(step: Any, steps: str) -> Any:
    if not isinstance(step, dict):
        return step
    match step.get("type"):
        case "Sequence":
            kept = [_without_steps(inner, steps) for inner in step.get(steps) or ()]
            return step | {steps: [inner for inner in kept if inner is not None]}
        case "Prepend" | "NFC":
            return None
        case "Metaspace":
            return {k: v for k, v in step.items() if k != "add_prefix_space"} | {"prepend_scheme": "never"}
        case "ByteLevel":
            return step | {"add_prefix_space": False}
    return step
