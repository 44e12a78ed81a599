"""Tokenised documents in memory."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from upalm.data.readers import Document
from upalm.data.tokenizer import Tokenizer
from upalm.ul2r.symbols import EOS_ID, SENTINEL_TEXT

BUILD_APART = "build them into folders of their own."
"""The remedy for plain text and supervised examples in one source."""


class Tokens(NamedTuple):
    """Tokenised documents end to end: document i is `ids[offsets[i]:offsets[i + 1]]`."""

    ids: np.ndarray
    offsets: np.ndarray
    n_inputs: np.ndarray | None = None
    """For supervised examples: how many of a document's tokens are inputs. None for plain text."""

    @classmethod
    def from_documents(cls, documents: Iterable[Sequence[int]], eos_id: int = EOS_ID) -> "Tokens":
        """Concatenate documents, with an EOS after each (PaLM's `[eod]`)."""
        return cls.concatenate([*document, eos_id] for document in documents)

    @classmethod
    def from_pairs(cls, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> "Tokens":
        """Concatenate supervised examples (inputs, targets). The loader, not this, ends targets with EOS."""
        tokens = cls.concatenate([*inputs, *targets] for inputs, targets in pairs)
        return tokens._replace(n_inputs=np.array([len(inputs) for inputs, _ in pairs], np.int32))

    @classmethod
    def concatenate(cls, documents: Iterable[Any]) -> "Tokens":
        """Concatenate documents as they are.

        Raises:
            ValueError: an id that is no integer, or does not fit int32.
        """
        arrays = [_as_ids(document) for document in documents]
        ids = np.concatenate(arrays) if arrays else np.empty(0, np.int32)
        return cls(ids, np.concatenate([[0], np.cumsum([len(a) for a in arrays])]).astype(np.int64))

    @property
    def lengths(self) -> np.ndarray:
        """Tokens in each document."""
        return np.diff(self.offsets)

    @property
    def n_tokens(self) -> int:
        """Tokens in all documents together."""
        return len(self.ids)

    @property
    def is_supervised(self) -> bool:
        """Whether documents are (inputs, targets)."""
        return self.n_inputs is not None

    @property
    def block_tokens(self) -> np.ndarray:
        """Tokens in each block; in memory, one block holds all."""
        return np.array([len(self.ids)])

    def block_lengths(self, blocks: np.ndarray) -> np.ndarray:
        """Lengths of the documents of some blocks, in order."""
        return np.concatenate([self.lengths for _ in blocks])

    def read(self, blocks: np.ndarray) -> "Tokens":
        """Return the documents of some blocks, in order."""
        return self

    def reorder(self, order: np.ndarray) -> "Tokens":
        """Return the documents in another order."""
        ids = [self.ids[self.offsets[i] : self.offsets[i + 1]] for i in order]
        offsets = np.concatenate([[0], np.cumsum(self.lengths[order])])
        n_inputs = None if self.n_inputs is None else self.n_inputs[order]
        return Tokens(np.concatenate(ids), offsets, n_inputs)


def _as_ids(document: Any) -> np.ndarray:
    ids = np.asarray(document)
    if not len(ids):
        return np.empty(0, np.int32)
    if ids.ndim != 1 or ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() > np.iinfo(np.int32).max:
        raise ValueError(f"token ids are {str(ids)[:80]}, expected a row of integers from 0 to 2^31 - 1.")
    return ids.astype(np.int32)


def spelling_problem(tokenizer: Tokenizer, document: Document) -> str | None:
    """Say why a vocabulary cannot spell a document; None if it can."""
    for text in (document.inputs or "", document.text):
        if not tokenizer.can_spell(text):
            try:
                tokenizer.encode(text)
            except ValueError as e:
                return str(e).rstrip(".")
    return None


def encode(tokenizer: Tokenizer, documents: Sequence[Document]) -> Tokens:
    """Tokenise documents on all cores.

    `<extra_id_i>` is sentinel i in supervised examples, as in prompts, and ordinary characters in plain text.

    Raises:
        ValueError: plain text among supervised examples, or a sentinel that the vocabulary lacks.
    """
    inputs = [d.inputs for d in documents if d.inputs is not None]
    if not inputs:
        targets = tokenizer.encode_documents([d.text for d in documents])
        return Tokens.from_documents(targets, tokenizer.symbols.eos_id)
    if len(inputs) < len(documents):
        plain = next(d for d in documents if d.inputs is None)
        raise ValueError(f"{plain.name} is plain text among (inputs, targets) examples: {BUILD_APART}")
    halves = (_encode_with_sentinels(tokenizer, texts) for texts in (inputs, [d.text for d in documents]))
    return Tokens.from_pairs(list(zip(*halves, strict=True)))


def _encode_with_sentinels(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    sentinels = tokenizer.symbols.sentinels
    last = f"<extra_id_{len(sentinels) - 1}>"
    ids = tokenizer.encode_documents(list(texts))
    for i, text in enumerate(texts):
        first, *rest = SENTINEL_TEXT.split(text)  # text, number, text, number, text ...
        if rest:
            ids[i] = tokenizer.encode(first)
            for number, part in zip(rest[::2], rest[1::2], strict=True):
                if int(number) >= len(sentinels):
                    raise ValueError(f"<extra_id_{number}> in {text[:80]!r}: expected <extra_id_0> to {last}.")
                ids[i] = [*ids[i], sentinels[int(number)], *tokenizer.encode(part)]
    return ids
