"""`Tokenizer`, what this project needs of one; and SentencePiece with PaLM's properties.

Lossless (whitespace kept, every digit its own token, bytes for what the vocabulary lacks), so
`decode(encode(a) + encode(b)) == a + b` for all strings. `tokenizer_json` has the tokenizers of open checkpoints.
"""

import hashlib
import io
from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import sentencepiece
from etils import epath

from upalm.ul2r.symbols import EOS_ID, MODES, N_SENTINELS, PAD_ID, UNK_ID, Symbols


class Tokenizer(ABC):
    """Text to ids and back, losslessly; sentinels and mode tokens are ids of the vocabulary."""

    vocab_size: int
    symbols: Symbols
    token_bytes: list[bytes]
    """The text of each id, in UTF-8; nothing for sentinels and control symbols."""
    files: dict[str, bytes]
    """What `save` writes, by name."""
    sentinels_are: str = "the last 100 subwords of the vocabulary"
    """How they were chosen."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Ids of ordinary text. `<extra_id_0>` written in it is characters, not a sentinel.

        Raises:
            ValueError: a lone surrogate.
        """

    @abstractmethod
    def encode_documents(self, texts: list[str]) -> list[list[int]]:
        """`encode` of each, on all cores."""

    @abstractmethod
    def _decode_text(self, ids: list[int]) -> str:
        """Text of ids without sentinels."""

    def decode(self, ids: Iterable[Any]) -> str:
        """Text of ids; sentinels become `<extra_id_i>`, control symbols nothing."""
        parts, held = [], []
        for i in map(int, ids):
            if i in self._numbers:
                parts += [self._decode_text(held), f"<extra_id_{self._numbers[i]}>"]
                held = []
            else:
                held.append(i)
        return "".join(parts) + self._decode_text(held)

    def is_sentinel(self, ids: Any) -> np.ndarray:
        """Which of these ids are sentinels."""
        return np.isin(ids, self.symbols.sentinels)

    @cached_property
    def _numbers(self) -> dict[int, int]:
        return {sentinel: number for number, sentinel in enumerate(self.symbols.sentinels)}

    @property
    def hash(self) -> str:
        """Identifies the tokenizer in checkpoints and manifests."""
        return hashlib.sha256(b"".join(self.files.values())).hexdigest()[:16]

    def save(self, folder: epath.PathLike) -> None:
        """Write its files."""
        for name, content in self.files.items():
            (epath.Path(folder) / name).write_bytes(content)

    def _check_lossless(self) -> None:
        for text in ("a  b\n\tc 12", " x", "x ", *MODES.values()):
            if (found := self.decode(self.encode(text))) != text:
                raise ValueError(f"the tokenizer is not lossless: {text!r} becomes {found!r}.")
        if len(set(self.symbols.modes.values())) != len(MODES):
            raise ValueError(f"mode tokens do not encode to different ids: {self.symbols.modes}.")


def check_text(*texts: str) -> None:
    """Refuse lone surrogates, which no vocabulary of bytes can spell.

    Raises:
        ValueError: with the surrogate and its place.
    """
    for text in texts:
        if text.isascii():
            continue
        try:
            text.encode()
        except UnicodeEncodeError as e:
            near = text[max(e.start - 20, 0) : e.start + 20]
            raise ValueError(
                f"the text {near!r} has the lone surrogate U+{ord(text[e.start]):04X} at character {e.start}: half a "
                "character, which UTF-8 cannot write. Leave it out, or replace it."
            ) from None


class SentencePiece(Tokenizer):
    """A SentencePiece model whose last 100 subwords are the sentinels `<extra_id_0..99>`.

    `<extra_id_i>` is id V - 1 - i, as in T5; the embeddings are reused, none are added
    (U-PaLM section 11.3). Ordinary text never encodes to a sentinel: where its best segmentation
    uses one of those subwords, `encode` spells that subword in bytes instead.

    Args:
        model: SentencePiece.

    Raises:
        ValueError: the vocabulary is not byte-complete, too small, or a mode token does not resolve.
    """

    FILE: ClassVar = "tokenizer.model"

    def __init__(self, model: bytes):
        self.files = {self.FILE: model}
        self._sp = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.vocab_size = self._sp.vocab_size()
        self._byte_ids = [self._sp.piece_to_id(f"<0x{b:02X}>") for b in range(256)]
        self._check()

    def _check(self) -> None:
        ids = (self._sp.pad_id(), self._sp.eos_id(), self._sp.unk_id())
        if ids != (PAD_ID, EOS_ID, UNK_ID):
            raise ValueError(f"pad, eos, unk are {ids}, expected {(PAD_ID, EOS_ID, UNK_ID)}.")
        if UNK_ID in self._byte_ids:
            raise ValueError("the vocabulary lacks byte pieces: train it with byte_fallback=True.")
        if max(self._byte_ids) >= self.first_sentinel:
            raise ValueError(
                f"a vocabulary of {self.vocab_size} leaves no room for {N_SENTINELS} sentinels "
                "after the 259 special and byte pieces: at least 360 are needed."
            )
        self._check_lossless()

    @property
    def first_sentinel(self) -> int:
        """Sentinels are the ids from here to the end of the vocabulary."""
        return self.vocab_size - N_SENTINELS

    @cached_property
    def symbols(self) -> Symbols:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Sentinels in order, and each mode's ids."""
        sentinels = tuple(range(self.vocab_size - 1, self.first_sentinel - 1, -1))
        return Symbols(sentinels, {k: tuple(self.encode(v)) for k, v in MODES.items()})

    @cached_property
    def token_bytes(self) -> list[bytes]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """See `Tokenizer`."""
        ids = range(self.first_sentinel)
        found = [b"" if self._sp.is_control(i) else self._sp.id_to_piece(i).replace("▁", " ").encode() for i in ids]
        for byte, i in enumerate(self._byte_ids):
            found[i] = bytes([byte])
        found[UNK_ID] = b""
        return found + [b""] * N_SENTINELS

    def piece(self, i: int) -> str:
        """A subword as the model has it, with a low line for each space."""
        return self._sp.id_to_piece(i)

    def piece_score(self, i: int) -> float:
        """Log-probability of a subword."""
        return self._sp.get_score(i)

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer`."""
        check_text(text)
        ids = self._sp.encode(text)
        if max(ids, default=0) < self.first_sentinel:
            return ids
        spelt = []
        for i in ids:
            piece = self._sp.id_to_piece(i).replace("▁", " ").encode() if i >= self.first_sentinel else b""
            spelt += [self._byte_ids[b] for b in piece] or [i]
        return spelt

    def encode_documents(self, texts: list[str]) -> list[list[int]]:
        """See `Tokenizer`."""
        check_text(*texts)
        ids = self._sp.encode(texts, num_threads=-1)
        return [
            self.encode(t) if max(i, default=0) >= self.first_sentinel else i for t, i in zip(texts, ids, strict=True)
        ]

    def _decode_text(self, ids: list[int]) -> str:
        return self._sp.decode([i for i in ids if i not in (PAD_ID, EOS_ID)])

    @classmethod
    def train(
        cls, texts: Iterable[str], vocab_size: int, *, max_bytes: int = 4_000_000, at_most: bool = False
    ) -> "SentencePiece":
        """Train on the first `max_bytes` of `texts`; with `at_most`, smaller where the text supports no more.

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
        return cls(out.getvalue())

    @classmethod
    def load(cls, path: epath.PathLike) -> "SentencePiece":
        """Read a SentencePiece model.

        Raises:
            ValueError: no such file, or not a SentencePiece model.
        """
        path = epath.Path(path)
        if not path.is_file():
            raise ValueError(f"no tokenizer at {path}: expected a SentencePiece model.")
        try:
            return cls(path.read_bytes())
        except RuntimeError as e:
            raise ValueError(f"{path} is not a SentencePiece model: {e}.") from e


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
