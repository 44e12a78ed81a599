"""Tokenised documents in memory."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from upalm.data import sources
from upalm.data.tokenizer import Tokenizer
from upalm.ul2r.symbols import EOS_ID

_APART = "build them into folders of their own."


class Tokens(NamedTuple):
    """Tokenised documents end to end: document i is `ids[offsets[i]:offsets[i + 1]]`."""

    ids: np.ndarray
    offsets: np.ndarray
    n_inputs: np.ndarray | None = None
    """Of supervised examples: how many of a document's tokens are inputs. None for plain text."""

    @classmethod
    def of(cls, documents: Sequence[Sequence[int]], eos_id: int = EOS_ID) -> "Tokens":
        """Concatenate, with an EOS after each document (PaLM's `[eod]`)."""
        return cls.joined([*d, eos_id] for d in documents)

    @classmethod
    def of_pairs(cls, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> "Tokens":
        """Supervised examples: (inputs, targets). No EOS is added here: the loader ends targets with one."""
        joined = cls.joined([*inputs, *targets] for inputs, targets in pairs)
        return joined._replace(n_inputs=np.array([len(inputs) for inputs, _ in pairs], np.int32))

    @classmethod
    def joined(cls, documents: Any) -> "Tokens":
        """Concatenate."""
        arrays = [np.asarray(d, np.int32) for d in documents]
        ids = np.concatenate(arrays) if arrays else np.empty(0, np.int32)
        return cls(ids, np.concatenate([[0], np.cumsum([len(a) for a in arrays])]).astype(np.int64))

    @property
    def lengths(self) -> np.ndarray:
        """Tokens in each document."""
        return np.diff(self.offsets)

    @property
    def n_tokens(self) -> int:
        """Tokens in all."""
        return len(self.ids)

    @property
    def is_supervised(self) -> bool:
        """Whether documents are (inputs, targets)."""
        return self.n_inputs is not None

    @property
    def block_tokens(self) -> np.ndarray:
        """In memory there is a single block."""
        return np.array([len(self.ids)])

    def block_lengths(self, blocks: np.ndarray) -> np.ndarray:
        """Lengths of the documents of some blocks, in order."""
        return np.concatenate([self.lengths for _ in blocks])

    def read(self, blocks: np.ndarray) -> "Tokens":
        """The documents of some blocks, in order."""
        return self

    def reordered(self, order: np.ndarray) -> "Tokens":
        """The documents in another order."""
        ids = [self.ids[self.offsets[i] : self.offsets[i + 1]] for i in order]
        offsets = np.concatenate([[0], np.cumsum(self.lengths[order])])
        n_inputs = None if self.n_inputs is None else self.n_inputs[order]
        return Tokens(np.concatenate(ids), offsets, n_inputs)


def encode(tokenizer: Tokenizer, documents: Sequence[sources.Document]) -> Tokens:
    """Tokenise on all cores.

    Raises:
        ValueError: plain text among supervised examples.
    """
    targets = tokenizer.encode_documents([d.text for d in documents])
    given = [d.inputs for d in documents]
    if all(x is None for x in given):
        return Tokens.of(targets, tokenizer.symbols.eos_id)
    for document in documents:
        if document.inputs is None:
            raise ValueError(f"{document.name} is plain text among (inputs, targets) examples: {_APART}")
    inputs = tokenizer.encode_documents([str(x) for x in given])
    return Tokens.of_pairs(list(zip(inputs, targets, strict=True)))
