"""SentencePiece with PaLM's properties, and the ids of sentinels and mode tokens.

Lossless (whitespace kept, every digit its own token, bytes for what the vocabulary lacks), so
`decode(encode(a) + encode(b)) == a + b` for all strings.
"""

import hashlib
import io
import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import sentencepiece
from etils import epath

PAD_ID, BOS_ID, EOS_ID, UNK_ID = 0, 0, 1, 2
"""BOS shares id 0 with padding, as in T5 and PaLM: it is only ever put there by the right shift."""

N_SENTINELS = 100
MODES = {"s2s": "[S2S]", "nlu": "[NLU]", "nlg": "[NLG]"}
"""Mode tokens of the S, R and X denoisers (U-PaLM section 2.3), kept as ordinary subwords."""

SENTINEL_TEXT = re.compile(r"<extra_id_(\d+)>")


class Symbols(NamedTuple):
    """What the objective needs to know of a vocabulary."""

    sentinels: tuple[int, ...]
    modes: dict[str, tuple[int, ...]]
    eos_id: int = EOS_ID
    bos_id: int = BOS_ID


class Tokenizer:
    """A SentencePiece model whose last 100 subwords are the sentinels `<extra_id_0..99>`.

    `<extra_id_i>` is id V - 1 - i, as in T5; the embeddings are reused, none are added
    (U-PaLM section 11.3). Ordinary text never encodes to a sentinel: where its best segmentation
    uses one of those subwords, `encode` spells that subword in bytes instead.

    Args:
        model: SentencePiece.
        inputs_eos: whether inputs with gaps end with EOS, which is how the model that this comes with was trained
            (`ul2r.Denoiser.inputs_eos`).
        gaps_trained: whether that model was trained on gaps at all; None if nobody knows.

    Raises:
        ValueError: the vocabulary is not byte-complete, too small, or a mode token does not resolve.
    """

    def __init__(self, model: bytes, *, inputs_eos: bool = False, gaps_trained: bool | None = None):
        self.model, self.inputs_eos, self.gaps_trained = model, inputs_eos, gaps_trained
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
        for text in ("a  b\n\tc 12", *MODES.values()):
            if self.decode(self.encode(text)) != text:
                raise ValueError(f"the tokenizer is not lossless: {text!r} does not survive it.")
        if len(set(self.symbols.modes.values())) != len(MODES):
            raise ValueError(f"mode tokens do not encode to different ids: {self.symbols.modes}.")

    @property
    def first_sentinel(self) -> int:
        """Sentinels are the ids from here to the end of the vocabulary."""
        return self.vocab_size - N_SENTINELS

    @cached_property
    def symbols(self) -> Symbols:
        """Sentinels in order, and each mode's ids."""
        sentinels = tuple(range(self.vocab_size - 1, self.first_sentinel - 1, -1))
        return Symbols(sentinels, {k: tuple(self.encode(v)) for k, v in MODES.items()})

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """The text of each id, in UTF-8; nothing for sentinels and control symbols."""
        ids = range(self.first_sentinel)
        found = [b"" if self._sp.is_control(i) else self._sp.id_to_piece(i).replace("▁", " ").encode() for i in ids]
        for byte, i in enumerate(self._byte_ids):
            found[i] = bytes([byte])
        found[UNK_ID] = b""
        return found + [b""] * N_SENTINELS

    @property
    def hash(self) -> str:
        """Identifies the tokenizer in checkpoints and manifests."""
        return hashlib.sha256(self.model).hexdigest()[:16]

    def encode(self, text: str) -> list[int]:
        """Ids of ordinary text. `<extra_id_0>` written in it is characters, not a sentinel."""
        ids = self._sp.encode(text)
        if max(ids, default=0) < self.first_sentinel:
            return ids
        spelt = []
        for i in ids:
            piece = self._sp.id_to_piece(i).replace("▁", " ").encode() if i >= self.first_sentinel else b""
            spelt += [self._byte_ids[b] for b in piece] or [i]
        return spelt

    def encode_documents(self, texts: list[str]) -> list[list[int]]:
        """`encode` of each, on all cores."""
        ids = self._sp.encode(texts, num_threads=-1)
        return [
            self.encode(t) if max(i, default=0) >= self.first_sentinel else i for t, i in zip(texts, ids, strict=True)
        ]

    def decode(self, ids: Iterable[Any]) -> str:
        """Text of ids; sentinels become `<extra_id_i>`, padding, BOS and EOS nothing."""
        parts, held = [], []
        for i in map(int, ids):
            if self.first_sentinel <= i < self.vocab_size:
                parts += [self._sp.decode(held), f"<extra_id_{self.vocab_size - 1 - i}>"]
                held = []
            elif i not in (PAD_ID, EOS_ID):
                held.append(i)
        return "".join(parts) + self._sp.decode(held)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, *, max_bytes: int = 4_000_000) -> "Tokenizer":
        """Train on the first `max_bytes` of `texts`.

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

    def save(self, path: Path) -> None:
        """Write the SentencePiece model."""
        path.write_bytes(self.model)

    @classmethod
    def load(cls, path: epath.PathLike, **trained: Any) -> "Tokenizer":
        """Read a SentencePiece model; `trained` is what `Tokenizer` takes beside it.

        Raises:
            ValueError: no such file, or not a SentencePiece model.
        """
        path = epath.Path(path)
        if not path.is_file():
            raise ValueError(f"no tokenizer at {path}: expected a SentencePiece model.")
        try:
            return cls(path.read_bytes(), **trained)
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
