"""The tokens that may come next: sentinels in order, span limits, stop strings."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from upalm.ul2r.symbols import Symbols

FREE, ANYTHING = 0, -1
"""In place of a number of gaps: text without sentinels; or whatever the model says."""


# --- Stop strings ---------------------------------------------------------------------------------


def stop_table(stop: Sequence[str], token_bytes: Sequence[bytes]) -> Int[np.ndarray, "Q V"]:
    """The automaton of Knuth, Morris and Pratt (Aho and Corasick's, for several strings) over whole tokens.

    State 0 is the start, the last state is "a stop string has come", which nothing leaves. A stop string is found
    wherever it begins and ends, within a token or across several.

    >>> stop_table(["ab"], [b"a", b"b", b"xab", b"ba"])
    array([[1, 0, 2, 1],
           [1, 2, 2, 2],
           [2, 2, 2, 2]], dtype=int32)

    Raises:
        ValueError: an empty stop string.
    """
    if "" in stop:
        raise ValueError("a stop string is empty: every text has it.")
    words = [word.encode() for word in stop]
    prefixes = sorted({word[:i] for word in words for i in range(len(word) + 1)}, key=len) or [b""]
    found = [any(prefix.endswith(word) for word in words) for prefix in prefixes]
    states = {prefix: i for i, prefix in enumerate(p for p, f in zip(prefixes, found, strict=True) if not f)}
    last = len(states)  # all prefixes that hold a whole stop string are one state
    by_byte = np.full((last + 1, 256), last, np.int32)
    for prefix, state in states.items():
        for byte in range(256):
            seen = prefix + bytes([byte])
            if not any(seen.endswith(word) for word in words):
                by_byte[state, byte] = next(states[seen[i:]] for i in range(len(seen) + 1) if seen[i:] in states)

    longest = max(map(len, token_bytes), default=0)
    padded = np.array([list(b) + [-1] * (longest - len(b)) for b in token_bytes]).reshape(len(token_bytes), longest)
    table = np.repeat(np.arange(last + 1, dtype=np.int32)[:, None], len(token_bytes), 1)
    for column in padded.T:
        table = np.where(column >= 0, by_byte[table, column], table)
    return table


# --- Grammar --------------------------------------------------------------------------------------


class Progress(NamedTuple):
    """Where each row is in what it has to write."""

    opened: Int[Array, " B"]
    """Sentinels so far."""
    span_length: Int[Array, " B"]
    """Tokens since the last one."""
    n_tokens: Int[Array, " B"]
    stop_state: Int[Array, " B"]
    done: Bool[Array, " B"]

    @classmethod
    def start(cls, max_tokens: Int[Array, " B"]) -> "Progress":
        """Before the first token."""
        zeros = jnp.zeros_like(max_tokens)
        return cls(zeros, zeros, zeros, zeros, max_tokens == 0)


class Grammar(NamedTuple):
    """`<extra_id_0> span <extra_id_1> span ... EOS` for rows with gaps; text, or anything, for others."""

    n_gaps: Int[Array, " B"]
    """Gaps to fill, or FREE, or ANYTHING."""
    limits: Int[Array, "B G"]
    """Most tokens of each gap."""
    max_tokens: Int[Array, " B"]
    """Most tokens of the row."""
    markers: Int[Array, " M"]
    """Sentinels in order."""
    is_marker: Bool[Array, " V"]
    usable: Bool[Array, " V"]
    """Subwords of the tokenizer, without those that are never written."""
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
        """For a tokenizer of as many subwords as `stop` has columns, and a model of `n_embeddings`."""
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
        chosen = jnp.where(n_gaps > 0, of_gaps, (n_gaps == ANYTHING) | ~is_marker)
        return chosen & self.usable[None]

    def after(self, at: Progress, token: Int[Array, " B"]) -> Progress:
        """The progress when `token` has been written; rows that are done stay as they are."""
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
