"""The Tokenizer interface, and SentencePiece with PaLM's properties.

Tokenizers are lossless (whitespace kept, bytes for what the vocabulary lacks), so that
`decode(encode(a) + encode(b)) == a + b` for all strings. `hf_tokenizer` has those of open checkpoints.
"""

import hashlib
import io
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import sentencepiece
from etils import epath

from upalm.files import write_atomically
from upalm.ul2r.symbols import EOS_ID, MODES, N_SENTINELS, PAD_ID, UNK_ID, Symbols, find_line_breaks

LOW_LINE = "\N{LOWER ONE EIGHTH BLOCK}"
"""The character (U+2581) that SentencePiece vocabularies write for a space."""

AWKWARD_TEXTS = (
    *("", " ", "  ", "\t", "\n\n", "\r\n", "\x00", "a  b\n\tc 12", " x", "x ", " \n ", "\u00a0x\u2003y"),
    *("a <user> b", "<|endoftext|> x", "<s> </s>", "<extra_id_0>", "<0x41>", "x<0xff>y", "[S2S] [NLU] [NLG]"),
    *(f"a{LOW_LINE}b", f"{LOW_LINE} {LOW_LINE}", "\ufeffx", "\u202eabc\u202c", "\u4f60\u597d 1,250 3.14", "\U0010ffff"),
    *("A\u030a \u212b \ufb01", "e\u0301 \u00e9", "\u1100\u1161 \uac00"),  # which Unicode normalisation changes
    *("\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f1eb\U0001f1f7"),  # several code points, one picture
)
"""Texts that tokenizers are known to change."""


class Tokenizer(ABC):
    """Text to ids and back, losslessly; sentinels and mode tokens are ids of the vocabulary."""

    vocab_size: int
    symbols: Symbols
    token_bytes: list[bytes]
    """Text of each id, in UTF-8; empty for sentinels and control symbols."""
    files: dict[str, bytes]
    """Files that `save` writes, by name."""
    sentinels_are: str = "the last 100 subwords of the vocabulary"
    """Choice of the sentinels, in words."""

    def encode(self, text: str) -> list[int]:
        """Encode ordinary text. `<extra_id_0>` written in it is characters, not a sentinel.

        Raises:
            ValueError: a lone surrogate, or a byte that the vocabulary cannot spell.
        """
        check_utf8(text)
        return self._encode_text(text)

    def encode_documents(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode each text, on all cores; errors as `encode`."""
        for text in texts:
            check_utf8(text)
        return self._encode_texts(list(texts))

    @abstractmethod
    def _encode_text(self, text: str) -> list[int]:
        """Encode text that UTF-8 can hold."""

    @abstractmethod
    def _encode_texts(self, texts: list[str]) -> list[list[int]]:
        """Encode texts that UTF-8 can hold, on all cores."""

    def _encode_around_low_lines(self, text: str, low_line: list[int]) -> list[int]:
        """Encode the parts between low lines, which become the ids `low_line`."""
        first, *rest = (self._encode_text(part) for part in text.split(LOW_LINE))
        return first + [i for part in rest for i in (*low_line, *part)]

    @abstractmethod
    def _decode_text(self, ids: list[int]) -> str:
        """Decode ids without sentinels."""

    def decode(self, ids: Iterable[Any]) -> str:
        """Decode ids; sentinels become `<extra_id_i>`, control symbols nothing."""
        ids = list(map(int, ids))
        if self._sentinel_numbers.keys().isdisjoint(ids):
            return self._decode_text(ids)
        parts, pending = [], []
        for i in ids:
            if i in self._sentinel_numbers:
                parts += [self._decode_text(pending), f"<extra_id_{self._sentinel_numbers[i]}>"]
                pending = []
            else:
                pending.append(i)
        return "".join(parts) + self._decode_text(pending)

    def is_sentinel(self, ids: Any) -> np.ndarray:
        """Return which of these ids are sentinels, as booleans."""
        return np.isin(ids, self.symbols.sentinels)

    @cached_property
    def _sentinel_numbers(self) -> dict[int, int]:
        return {sentinel: number for number, sentinel in enumerate(self.symbols.sentinels)}

    @property
    def hash(self) -> str:
        """Identity of the tokenizer in checkpoints and manifests: a hash of everything that decides ids."""
        return self.hashes[0]

    @property
    @abstractmethod
    def hashes(self) -> tuple[str, ...]:
        """The identity, followed by those that earlier versions stored for the same tokenizer."""

    def save(self, folder: epath.PathLike) -> None:
        """Write the tokenizer's files into a folder; those that it has already are left as they are."""
        for name, content in self.files.items():
            path = epath.Path(folder) / name
            if path.is_file() and path.read_bytes() == content:
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, content)

    def check_text(self, text: str) -> None:
        """Check that a text comes back from its ids.

        Raises:
            ValueError: with the text and what it becomes.
        """
        if (decoded := self.decode(self.encode(text))) != text:
            raise ValueError(f"the tokenizer is not lossless: {text!r} becomes {decoded!r}.")

    def check_lossless(self) -> None:
        """Check awkward texts and every code point that the vocabulary can spell (a few seconds).

        Raises:
            ValueError: with the first text that does not come back.
        """
        for text in filter(self.can_spell, AWKWARD_TEXTS):
            self.check_text(text)
        for at in range(0, 0x110000, 1 << 14):  # few at a time: their ids take 100 bytes per character
            points = [i for i in range(at, at + (1 << 14)) if not 0xD800 <= i < 0xE000]
            texts = ["".join(map(chr, points[first : first + 1024])) for first in range(0, len(points), 1024)]
            texts = [text if self.can_spell(text) else "".join(filter(self.can_spell, text)) for text in texts]
            for text, ids in zip(texts, self.encode_documents(texts), strict=True):
                if self.decode(ids) != text:
                    for point in text:
                        self.check_text(point)
                    self.check_text(text)

    def can_spell(self, text: str) -> bool:
        """Return whether the vocabulary has pieces for all bytes of a text."""
        return True

    def _check_modes(self) -> None:
        for text in ("a  b\n\tc 12", " x", "x ", *MODES.values()):
            self.check_text(text)
        if len(set(self._modes.values())) != len(MODES):
            raise ValueError(f"mode tokens do not encode to different ids: {self._modes}.")

    @cached_property
    def _modes(self) -> dict[str, tuple[int, ...]]:
        return {mode: tuple(self.encode(text)) for mode, text in MODES.items()}


def check_utf8(text: str, what: str = "the text") -> None:
    """Refuse lone surrogates, which no vocabulary of bytes can spell.

    Raises:
        ValueError: with the surrogate and its place.
    """
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as e:
        near = text[max(e.start - 20, 0) : e.start + 20]
        raise ValueError(
            f"{what} has the lone surrogate U+{ord(text[e.start]):04X} at character {e.start}, in {near!r}: half a "
            "character, which UTF-8 cannot write. Leave it out, or decode the text anew."
        ) from None


class SentencePiece(Tokenizer):
    """A SentencePiece model whose last 100 subwords are the sentinels `<extra_id_0..99>`.

    `<extra_id_i>` is id V - 1 - i, as in T5; the embeddings are reused, none are added
    (U-PaLM section 11.3). Ordinary text never encodes to a sentinel: where its best segmentation
    uses one of those subwords, `encode` spells that subword in bytes instead.

    Args:
        model: SentencePiece; `processor` is the library's view of it.

    Raises:
        ValueError: the vocabulary is not byte-complete, too small, or a mode token does not resolve.
    """

    FILE: ClassVar = "tokenizer.model"

    def __init__(self, model: bytes):
        self.files = {self.FILE: model}
        self.processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.vocab_size = self.processor.vocab_size()
        self._byte_ids = [self.processor.piece_to_id(f"<0x{b:02X}>") for b in range(256)]
        self._check()

    def _check(self) -> None:
        ids = (self.processor.pad_id(), self.processor.eos_id(), self.processor.unk_id())
        if ids != (PAD_ID, EOS_ID, UNK_ID):
            raise ValueError(f"pad, eos, unk are {ids}, expected {(PAD_ID, EOS_ID, UNK_ID)}.")
        if UNK_ID in self._byte_ids:
            raise ValueError("the vocabulary lacks byte pieces: train it with byte_fallback=True.")
        if max(self._byte_ids) >= self.first_sentinel:
            raise ValueError(
                f"a vocabulary of {self.vocab_size} leaves no room for {N_SENTINELS} sentinels "
                "after the 259 special and byte pieces: at least 360 are needed."
            )
        self._check_modes()

    @property
    def hashes(self) -> tuple[str, ...]:
        """See `Tokenizer`."""
        return (hashlib.sha256(self.files[self.FILE]).hexdigest()[:16],)

    @property
    def first_sentinel(self) -> int:
        """Sentinels are the ids from here to the end of the vocabulary."""
        return self.vocab_size - N_SENTINELS

    @cached_property
    def symbols(self) -> Symbols:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Sentinels in order, each mode's ids, and where lines begin and end."""
        sentinels = tuple(range(self.vocab_size - 1, self.first_sentinel - 1, -1))
        return Symbols(sentinels, self._modes)._replace(**find_line_breaks(self.token_bytes))

    @cached_property
    def token_bytes(self) -> list[bytes]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """See `Tokenizer`."""
        ids = range(self.first_sentinel)
        texts = [b"" if self.processor.is_control(i) else self._text(i) for i in ids]
        for byte, i in enumerate(self._byte_ids):
            texts[i] = bytes([byte])
        texts[UNK_ID] = b""
        return texts + [b""] * N_SENTINELS

    def _encode_text(self, text: str) -> list[int]:
        if LOW_LINE in text:  # the model takes it for a space
            return self._encode_around_low_lines(text, [self._byte_ids[b] for b in LOW_LINE.encode()])
        return self._spell_sentinels(self.processor.encode(text))

    def _encode_texts(self, texts: list[str]) -> list[list[int]]:
        ids = self.processor.encode(texts, num_threads=-1)
        return [
            self._encode_text(text) if LOW_LINE in text else self._spell_sentinels(some)
            for text, some in zip(texts, ids, strict=True)
        ]

    def _spell_sentinels(self, ids: list[int]) -> list[int]:
        """Spell in bytes each subword that serves as a sentinel."""
        if max(ids, default=0) < self.first_sentinel:
            return ids
        spelt = []
        for i in ids:
            spelt += [self._byte_ids[b] for b in self._text(i)] if i >= self.first_sentinel else [i]
        return spelt

    def _text(self, i: int) -> bytes:
        return self.processor.id_to_piece(i).replace(LOW_LINE, " ").encode()

    def _decode_text(self, ids: list[int]) -> str:
        return self.processor.decode([i for i in ids if i not in (PAD_ID, EOS_ID)])

    @classmethod
    def train(
        cls, texts: Iterable[str], vocab_size: int, *, max_bytes: int = 4_000_000, at_most: bool = False
    ) -> "SentencePiece":
        """Train on the first `max_bytes` of `texts`; with `at_most`, smaller where the text supports no more.

        The last 100 pieces are marked unused, so that SentencePiece itself never writes a sentinel.

        Paper: PaLM (arXiv:2204.02311) section 4, vocabulary; unigram model, our choice (unstated there):
        its ids are sorted by probability, so that the last 100 subwords are the rarest.

        Raises:
            ValueError: `vocab_size` is larger than the text supports.
        """
        out = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=_pieces_of(texts, max_bytes),
                model_writer=out,
                vocab_size=vocab_size,
                hard_vocab_limit=not at_most,
                model_type="unigram",
                pad_id=PAD_ID,
                eos_id=EOS_ID,
                unk_id=UNK_ID,
                bos_id=-1,
                byte_fallback=True,
                split_digits=True,
                normalization_rule_name="identity",
                remove_extra_whitespaces=False,
                allow_whitespace_only_pieces=True,
                add_dummy_prefix=False,
                character_coverage=0.9999,
                max_sentence_length=1 << 20,
                num_threads=1,  # the result depends on the number of threads
                minloglevel=2,
            )
        except RuntimeError as e:
            raise ValueError(
                f"the text does not support a vocabulary of {vocab_size}: {e}. Give more text, or a smaller vocabulary."
            ) from e
        cls(out.getvalue())  # refuses a vocabulary that is too small
        return cls(_with_unused_sentinels(out.getvalue()))

    @classmethod
    def load(cls, path: epath.PathLike) -> "SentencePiece":
        """Read a SentencePiece model.

        Raises:
            ValueError: no such file, not a SentencePiece model, or one that lacks what is needed of it.
        """
        path = epath.Path(path)
        if not path.is_file():
            raise ValueError(f"no tokenizer at {path}: expected a SentencePiece model.")
        try:
            return cls(path.read_bytes())
        except RuntimeError as e:
            raise ValueError(f"{path} is not a SentencePiece model: {str(e).rstrip('.')}.") from e
        except ValueError as e:
            raise ValueError(f"{path}: {e}") from e


def _with_unused_sentinels(model: bytes) -> bytes:
    from sentencepiece import sentencepiece_model_pb2  # loads protobuf

    proto: Any = sentencepiece_model_pb2.ModelProto()  # pyright: ignore[reportAttributeAccessIssue]
    proto.ParseFromString(model)
    for piece in proto.pieces[-N_SENTINELS:]:
        piece.type = piece.UNUSED
    return proto.SerializeToString(deterministic=True)


def _pieces_of(texts: Iterable[str], max_bytes: int) -> Iterable[str]:
    """Sentences of about 1000 characters: newlines stay inside, so that they are learnt too."""
    seen = 0
    for text in texts:
        for at in range(0, len(text), 1000):
            if seen >= max_bytes:
                return
            piece = text[at : at + 1000]
            seen += len(piece.encode())
            yield piece
