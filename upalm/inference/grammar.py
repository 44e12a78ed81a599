"""The tokens that may come next: sentinels in order, span limits, stop strings.

Dims: B batch rows, V vocabulary, G gaps, M sentinels, Q states of the automaton of stop strings.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from upalm.ul2r.symbols import Symbols

FREE, ANYTHING = 0, -1
"""Values in place of a number of gaps: text without sentinels; or any tokens at all."""


# --- Stop strings ---------------------------------------------------------------------------------


class TokenBytes(NamedTuple):
    """The bytes of every token, laid out so that an automaton reads them column by column."""

    columns: tuple[np.ndarray, ...]
    """Column j: the byte at place j of every token that has one, tokens ordered by falling length."""
    order: Int[np.ndarray, " V"]
    """Token ids by falling length."""

    @classmethod
    def of(cls, token_bytes: Sequence[bytes]) -> "TokenBytes":
        """Lay out the bytes of a vocabulary."""
        lengths = np.array([len(b) for b in token_bytes])
        order = np.argsort(-lengths, kind="stable")
        joined, starts = np.frombuffer(b"".join(token_bytes), np.uint8), np.cumsum(lengths) - lengths
        n_tokens = len(lengths) - np.searchsorted(np.sort(lengths), np.arange(lengths.max(initial=0)), side="right")
        columns = [joined[starts[order[:n]] + place] for place, n in enumerate(n_tokens)]
        return cls(tuple(columns), order)

    def run(self, by_byte: Int[np.ndarray, "Q 256"]) -> Int[np.ndarray, "Q V"]:
        """The state that each token leads to from each state of an automaton over bytes."""
        states = np.repeat(np.arange(len(by_byte), dtype=np.int32)[:, None], len(self.order), 1)
        flat = by_byte.ravel()
        for column in self.columns:
            some = states[:, : len(column)]
            some[:] = flat[some * 256 + column]
        table = np.empty_like(states)
        table[:, self.order] = states
        return table


def no_stop(vocab_size: int) -> Int[np.ndarray, "2 V"]:
    """The table of no stop string: its last state is never reached."""
    return np.repeat(np.array([[0], [1]], np.int32), vocab_size, 1)


def stop_table(stop: Sequence[str], token_bytes: TokenBytes) -> Int[np.ndarray, "Q V"]:
    """Build the automaton of Aho and Corasick over whole tokens, which finds every stop string.

    State 0 is the start, the last state is "a stop string has come", which nothing leaves. A stop string is found
    wherever it begins and ends, within a token or across several.

    >>> stop_table(["ab"], TokenBytes.of([b"a", b"b", b"xab", b"ba"]))
    array([[1, 0, 2, 1],
           [1, 2, 2, 2],
           [2, 2, 2, 2]], dtype=int32)
    """
    if not stop:
        return no_stop(len(token_bytes.order))
    words = [word.encode() for word in stop]
    prefixes = sorted({word[:i] for word in words for i in range(len(word) + 1)}, key=len)
    unfinished = [prefix for prefix in prefixes if not any(prefix.endswith(word) for word in words)]
    states = {prefix: i for i, prefix in enumerate(unfinished)}
    last = len(states)  # all prefixes that hold a whole stop string are one state
    by_byte = np.full((last + 1, 256), last, np.int32)
    for prefix, state in states.items():
        for byte in range(256):
            seen = prefix + bytes([byte])
            if not any(seen.endswith(word) for word in words):
                by_byte[state, byte] = next(states[seen[i:]] for i in range(len(seen) + 1) if seen[i:] in states)
    return token_bytes.run(by_byte)


# --- Grammar --------------------------------------------------------------------------------------


class Progress(NamedTuple):
    """How far each row's answer has come."""

    opened: Int[Array, " B"]
    """Sentinels written."""
    span_length: Int[Array, " B"]
    """Tokens since the last sentinel."""
    n_tokens: Int[Array, " B"]
    stop_state: Int[Array, " B"]
    done: Bool[Array, " B"]

    @classmethod
    def start(cls, max_tokens: Int[Array, " B"]) -> "Progress":
        """Before the first token."""
        zeros = jnp.zeros_like(max_tokens)
        return cls(zeros, zeros, zeros, zeros, max_tokens == 0)


class Rules(NamedTuple):
    """Symbols and stop strings that decide the grammar."""

    symbols: Symbols = Symbols((), {})
    """Sentinels, EOS, BOS, and the ids that no answer has."""
    stop: Int[np.ndarray, "Q V"] | None = None
    """See `stop_table`; embeddings beyond its width are never chosen. None allows every embedding."""


class Grammar(NamedTuple):
    """`<extra_id_0> span <extra_id_1> span ... EOS` for rows with gaps; text, or anything, for others."""

    n_gaps: Int[Array, " B"]
    """Gaps to fill; or FREE, or ANYTHING."""
    limits: Int[Array, "B G"]
    """Most tokens of each gap."""
    max_tokens: Int[Array, " B"]
    """Most tokens of the row."""
    markers: Int[Array, " M"]
    """Sentinels in order."""
    is_marker: Bool[Array, " V"]
    usable: Bool[Array, " V"]
    """Ids of the tokenizer, except those that no answer has."""
    stop: Int[Array, "Q V"]
    """See `stop_table`."""
    eos_id: Int[Array, ""]

    @classmethod
    def of(
        cls,
        n_gaps: Array,
        limits: Array,
        max_tokens: Array,
        *,
        symbols: Symbols,
        stop: np.ndarray,
        n_embeddings: int,
    ) -> "Grammar":
        """Build the grammar for a tokenizer with one subword per column of `stop`, and a model of `n_embeddings`."""
        ids = np.arange(n_embeddings)
        usable = (ids < stop.shape[1]) & ~np.isin(ids, symbols.never_generated)
        padded = np.pad(stop, ((0, 0), (0, n_embeddings - stop.shape[1]))).astype(np.int32)
        markers = np.array(symbols.sentinels or (symbols.eos_id,), np.int32)
        tables = (markers, np.isin(ids, symbols.sentinels), usable, padded, np.int32(symbols.eos_id))
        return cls(n_gaps, limits, max_tokens, *map(jnp.asarray, tables))

    def allowed(self, at: Progress) -> Bool[Array, "B V"]:
        """Tokens that may come next."""
        ids, is_marker = jnp.arange(len(self.usable))[None], self.is_marker[None]
        following = jnp.where(at.opened < self.n_gaps, self.markers[at.opened % len(self.markers)], self.eos_id)
        limit = jnp.take_along_axis(self.limits, jnp.clip(at.opened - 1, 0, self.limits.shape[1] - 1)[:, None], 1)
        has_room = (at.opened > 0) & (at.span_length < limit[:, 0]) & ~self._stopped(at)
        of_gaps = (ids == following[:, None]) | (has_room[:, None] & ~is_marker & (ids != self.eos_id))
        n_gaps = self.n_gaps[:, None]
        allowed = jnp.where(n_gaps > 0, of_gaps, (n_gaps == ANYTHING) | ~is_marker)
        return allowed & self.usable[None]

    def after(self, at: Progress, token: Int[Array, " B"]) -> Progress:
        """Progress once `token` is written. Rows that are done stay as they are."""
        is_marker = self.is_marker[token]
        new = Progress(
            opened=at.opened + is_marker,
            span_length=jnp.where(is_marker, 0, at.span_length + 1),
            n_tokens=at.n_tokens + 1,
            stop_state=jnp.where(is_marker, 0, self.stop[at.stop_state, token]),
            done=at.done,
        )
        ends = (token == self.eos_id) | (new.n_tokens >= self.max_tokens)
        ends |= (self.n_gaps == FREE) & self._stopped(new)
        new = new._replace(done=ends)
        return Progress(*(jnp.where(at.done, a, b) for a, b in zip(at, new, strict=True)))

    def _stopped(self, at: Progress) -> Bool[Array, " B"]:
        return at.stop_state == self.stop.shape[0] - 1
