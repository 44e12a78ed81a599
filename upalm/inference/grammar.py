"""The tokens that may come next: sentinels in order, span limits, stop strings, bytes at the borders of gaps.

Dims: B batch rows, V vocabulary, G gaps, M sentinels, Q states of the automaton of spans.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from upalm.ul2r.symbols import Symbols

FREE, ANYTHING = 0, -1
"""Values in place of a number of gaps: text without sentinels; or any tokens at all."""


# --- Spans ----------------------------------------------------------------------------------------


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


class Border(NamedTuple):
    """Bytes at both ends of a span that were taken back from the text around its gap. See `healing`."""

    head: tuple[bytes, ...] = ()
    """Bytes of each token before the gap that was taken back. The span begins with them all."""
    tail: bytes = b""
    """The span ends with them, unless a stop string comes first."""


NEVER = 1 << 20
"""Tokens to go in a state from which no span ends."""


class Automaton(NamedTuple):
    """The spans that are allowed, as an automaton over tokens."""

    table: Int[np.ndarray, "Q V"]
    """The state that each token leads to from each state."""
    to_go: Int[np.ndarray, " Q"]
    """Fewest tokens until the span may end; 0 if it may end now."""
    stopped: Bool[np.ndarray, " Q"]
    """A stop string has come: the span must end."""
    start: int = 0

    @classmethod
    def of_any_text(cls, vocab_size: int) -> "Automaton":
        """Build the automaton that allows every span."""
        return cls(np.zeros((1, vocab_size), np.int32), np.zeros(1, np.int32), np.zeros(1, bool))

    @classmethod
    def of(cls, token_bytes: TokenBytes, stop: Sequence[str] = (), border: Border = Border()) -> "Automaton":
        """Build a chain of the head's tokens, and after it the automaton of Aho and Corasick for tail and stop strings.

        A token may go past the head, or end where one of the head's tokens ends; other ways to spell the head are no
        text of training. A stop string is found wherever it begins and ends after the head, within a token or across
        several. Nothing leaves the last two states: "the span is wrong" and "a stop string has come".

        >>> Automaton.of(TokenBytes.of([b"a", b"b", b"xab", b"ba"]), ["ab"]).table
        array([[1, 0, 3, 1],
               [1, 3, 3, 3],
               [2, 2, 2, 2],
               [3, 3, 3, 3]], dtype=int32)
        """
        words, (pieces, tail) = [word.encode() for word in stop], border
        prefixes = sorted({word[:i] for word in (*words, tail) for i in range(len(word) + 1)}, key=len)
        unfinished = [prefix for prefix in prefixes if not any(prefix.endswith(word) for word in words)]
        states = {prefix: i for i, prefix in enumerate(unfinished)}
        head, n = b"".join(pieces), len(states)
        chain = [*range(n, n + len(head)), 0]
        wrong = n + len(head)
        last = wrong + 1  # all prefixes that hold a whole stop string are one state
        by_byte = np.full((last + 1, 256), last, np.int32)
        for prefix, state in states.items():
            for byte in range(256):
                seen = prefix + bytes([byte])
                if not any(seen.endswith(word) for word in words):
                    by_byte[state, byte] = next(states[seen[i:]] for i in range(len(seen) + 1) if seen[i:] in states)
        by_byte[n:last] = wrong
        by_byte[chain[:-1], list(head)] = chain[1:]
        table = token_bytes.run(by_byte)
        inside = np.setdiff1d(chain[:-1], n + np.cumsum([0, *map(len, pieces)]))  # where a token may not end
        table[np.isin(table, inside)] = wrong
        stopped = np.arange(last + 1) == last
        may_end = stopped | np.isin(np.arange(last + 1), [states[p] for p in unfinished if p.endswith(tail)])
        return cls(table, _count_to_go(table, may_end), stopped, chain[0])


def _count_to_go(table: Int[np.ndarray, "Q V"], may_end: Bool[np.ndarray, " Q"]) -> Int[np.ndarray, " Q"]:
    """Count the fewest tokens from each state to one in which a span may end."""
    to_go = np.where(may_end, 0, NEVER).astype(np.int32)
    while not np.array_equal(to_go, shorter := np.minimum(to_go, 1 + to_go[table].min(1))):
        to_go = shorter
    return to_go


def join(automata: Sequence[Automaton]) -> tuple[Automaton, list[int]]:
    """Join automata into one with the states of all. Returns it, and where each begins.

    The number of states is rounded up to a power of two, so that few shapes are compiled.
    """
    *offsets, n_states = np.cumsum([0, *(len(a.to_go) for a in automata)]).tolist()
    padding = (0, (1 << (n_states - 1).bit_length()) - n_states)
    table = np.concatenate([a.table + offset for a, offset in zip(automata, offsets, strict=True)])
    to_go, stopped = (np.concatenate(x) for x in zip(*((a.to_go, a.stopped) for a in automata), strict=True))
    joined = Automaton(np.pad(table, (padding, (0, 0))), np.pad(to_go, padding), np.pad(stopped, padding))
    return joined, [a.start + offset for a, offset in zip(automata, offsets, strict=True)]


# --- Grammar --------------------------------------------------------------------------------------


class Progress(NamedTuple):
    """Progress of each row's answer."""

    opened: Int[Array, " B"]
    """Sentinels written."""
    span_length: Int[Array, " B"]
    """Tokens since the last sentinel."""
    n_tokens: Int[Array, " B"]
    state: Int[Array, " B"]
    """State of the automaton of spans."""
    done: Bool[Array, " B"]

    @classmethod
    def start(cls, max_tokens: Int[Array, " B"]) -> "Progress":
        """Before the first token."""
        zeros = jnp.zeros_like(max_tokens)
        return cls(zeros, zeros, zeros, zeros, max_tokens == 0)


class Rules(NamedTuple):
    """Symbols and spans that decide the grammar."""

    symbols: Symbols = Symbols((), {})
    """Sentinels, EOS, BOS, and the ids that no answer has."""
    spans: Callable[[Border], Automaton] | None = None
    """Builds the automaton of a gap; embeddings beyond its width are never chosen. None allows every embedding."""


class Grammar(NamedTuple):
    """`<extra_id_0> span <extra_id_1> span ... EOS` for rows with gaps; text, or anything, for others."""

    n_gaps: Int[Array, " B"]
    """Gaps to fill; or FREE, or ANYTHING."""
    limits: Int[Array, "B G"]
    """Most tokens of each gap."""
    max_tokens: Int[Array, " B"]
    """Most tokens of the row."""
    starts: Int[Array, "B G"]
    """State in which each gap's span begins. Rows without gaps begin in state 0."""
    markers: Int[Array, " M"]
    """Sentinels in order."""
    is_marker: Bool[Array, " V"]
    usable: Bool[Array, " V"]
    """Ids of the tokenizer, except those that no answer has."""
    table: Int[Array, "Q V"]
    """Transitions of the `Automaton`, which documents the next two as well."""
    to_go: Int[Array, " Q"]
    stopped: Bool[Array, " Q"]
    eos_id: Int[Array, ""]

    @classmethod
    def of(
        cls,
        n_gaps: Array,
        limits: Array,
        max_tokens: Array,
        starts: Array,
        *,
        symbols: Symbols,
        spans: Automaton,
        n_embeddings: int,
    ) -> "Grammar":
        """Build the grammar for a tokenizer with one subword per column of `spans`, and a model of `n_embeddings`."""
        ids, n_subwords = np.arange(n_embeddings), spans.table.shape[1]
        usable = (ids < n_subwords) & ~np.isin(ids, symbols.never_generated)
        table = np.pad(spans.table, ((0, 0), (0, n_embeddings - n_subwords)))
        markers = np.array(symbols.sentinels or (symbols.eos_id,), np.int32)
        tables = (markers, np.isin(ids, symbols.sentinels), usable, table, spans.to_go, spans.stopped)
        return cls(n_gaps, limits, max_tokens, starts, *map(jnp.asarray, (*tables, np.int32(symbols.eos_id))))

    def allowed(self, at: Progress) -> Bool[Array, "B V"]:
        """Tokens that may come next."""
        ids, is_marker = jnp.arange(len(self.usable))[None], self.is_marker[None]
        following = jnp.where(at.opened < self.n_gaps, self.markers[at.opened % len(self.markers)], self.eos_id)
        closes = (ids == following[:, None]) & ((at.opened == 0) | (self.to_go[at.state] == 0))[:, None]
        room = self._of_gap(self.limits, at.opened) - at.span_length
        continues = (self.to_go[self.table[at.state]] < room[:, None]) & ~is_marker & (ids != self.eos_id)
        of_gaps = closes | (continues & ((at.opened > 0) & ~self.stopped[at.state])[:, None])
        n_gaps = self.n_gaps[:, None]
        allowed = jnp.where(n_gaps > 0, of_gaps, (n_gaps == ANYTHING) | ~is_marker)
        return allowed & self.usable[None]

    def after(self, at: Progress, token: Int[Array, " B"]) -> Progress:
        """Progress once `token` is written. Rows that are done stay as they are."""
        is_marker = self.is_marker[token]
        opened = at.opened + is_marker
        new = Progress(
            opened=opened,
            span_length=jnp.where(is_marker, 0, at.span_length + 1),
            n_tokens=at.n_tokens + 1,
            state=jnp.where(is_marker, self._of_gap(self.starts, opened), self.table[at.state, token]),
            done=at.done,
        )
        ends = (token == self.eos_id) | (new.n_tokens >= self.max_tokens)
        ends |= (self.n_gaps == FREE) & self.stopped[new.state]
        new = new._replace(done=ends)
        return Progress(*(jnp.where(at.done, a, b) for a, b in zip(at, new, strict=True)))

    def _of_gap(self, values: Int[Array, "B G"], opened: Int[Array, " B"]) -> Int[Array, " B"]:
        """Return the value of the gap that was opened last."""
        return jnp.take_along_axis(values, jnp.clip(opened - 1, 0, values.shape[1] - 1)[:, None], 1)[:, 0]
