"""Take tokens back at the borders of gaps, so that a span may have tokens that cross them.

A gap inside a word cuts a text's tokens as no training row ever was: `ret` and `urn` are not what a gap leaves of
`return`. So the prompt gives up tokens at the border, and the span has to write their bytes anew (see `Border`).
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import NamedTuple

from upalm.inference.grammar import Border


class Vocabulary(NamedTuple):
    """Bytes of the tokens, and which of them begin and end alike."""

    token_bytes: Sequence[bytes]
    by_beginning: list[bytes]
    """Sorted."""
    by_end: list[bytes]
    """Reversed, and sorted."""
    longest: int

    @classmethod
    def of(cls, token_bytes: Sequence[bytes]) -> "Vocabulary":
        """Sort the tokens of a vocabulary."""
        by_end = sorted(token[::-1] for token in token_bytes)
        return cls(token_bytes, sorted(token_bytes), by_end, max(map(len, token_bytes)))

    def bytes_of(self, ids: Sequence[int]) -> bytes:
        """Join the bytes of ids."""
        return b"".join(self.token_bytes[i] for i in ids)

    def count_before(self, ids: Sequence[int]) -> int:
        """Count the last ids that a single, longer token begins with: as many as there is such a token for."""
        return self._count(lambda n: self.bytes_of(ids[-n:]), len(ids), self.by_beginning)

    def count_after(self, ids: Sequence[int]) -> int:
        """Count the first ids that a single, longer token ends with."""
        return self._count(lambda n: self.bytes_of(ids[:n])[::-1], len(ids), self.by_end)

    def _count(self, bytes_of_some: Callable[[int], bytes], n_ids: int, ordered: Sequence[bytes]) -> int:
        """Find the most ids whose bytes a longer token of `ordered` begins with."""
        most = 0
        for n in range(1, n_ids + 1):
            joined = bytes_of_some(n)
            if len(joined) >= self.longest:
                break
            at = bisect_right(ordered, joined)
            if at < len(ordered) and ordered[at].startswith(joined):
                most = n
        return most


class Healed(NamedTuple):
    """Parts without the tokens that were taken back, and what this asks of the spans."""

    parts: list[list[int]]
    borders: tuple[Border, ...]
    limits: tuple[int, ...]
    """Most tokens of each gap: those asked for, and as many as were taken back."""


def take_back(
    vocabulary: Vocabulary,
    parts: Sequence[str],
    ids: Sequence[Sequence[int]],
    limits: Sequence[int],
    stop: Sequence[str] = (),
) -> Healed:
    """Take back the tokens before each gap that a longer token could begin with, and those after it likewise.

    After a gap, only where the text begins inside a word: a letter, a digit or `_`. A gap of no tokens stays as it is,
    and of a part between two gaps, one token.

    Args:
        vocabulary: of the tokenizer.
        parts: texts around the gaps.
        ids: each part, encoded by itself.
        limits: most tokens of each gap.
        stop: strings that end a span. Text after a gap that has one is not taken back.
    """
    kept, borders, raised = [list(x) for x in ids], [], []
    for gap, limit in enumerate(limits):
        before, after = kept[gap], kept[gap + 1]
        n_head = vocabulary.count_before(before[gap > 0 :]) if limit else 0
        kept[gap], head = before[: len(before) - n_head], before[len(before) - n_head :]
        is_last, is_in_word = gap + 1 == len(limits), re.match(r"\w", parts[gap + 1])
        n_tail = vocabulary.count_after(after[: len(after) - (not is_last)]) if limit and is_in_word else 0
        if any(word.encode() in vocabulary.bytes_of(after[:n_tail]) for word in stop):
            n_tail = 0
        kept[gap + 1], tail = after[n_tail:], after[:n_tail]
        borders.append(Border(tuple(vocabulary.token_bytes[i] for i in head), vocabulary.bytes_of(tail)))
        raised.append(limit + n_head + n_tail)
    return Healed(kept, tuple(borders), tuple(raised))
