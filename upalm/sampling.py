"""What the next token may be, and which it is: samplers, the sentinel grammar, stop strings.

Dims: B batch rows, V vocabulary, G gaps, M sentinels, Q states of the stop strings' automaton.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from upalm.tokenizer import Symbols

FREE, ANYTHING = 0, -1
"""In place of a number of gaps: text without sentinels; or whatever the model says."""


@dataclass(frozen=True)
class Sampler:
    """How the next token is drawn. Filters apply in the order of the fields, each to what the one before left."""

    temperature: float = 0.0
    """0 is greedy."""
    top_k: int = 0
    """Keep the k most likely; 0 keeps all."""
    top_p: float = 1.0
    """Keep the most likely up to this probability."""
    min_p: float = 0.0
    """Keep what has at least this share of the most likely token's probability."""

    def __post_init__(self):
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1 or not 0 <= self.min_p <= 1:
            raise ValueError(f"{self}: expected temperature >= 0, top_k >= 0, top_p in (0, 1], min_p in [0, 1].")

    def __call__(self, logits_BV: Float[Array, "B V"], keys: Array) -> Int[Array, " B"]:
        """Choose a token a row, each with its own key."""
        if self.temperature == 0:
            ids = jnp.arange(logits_BV.shape[-1])[None]
            is_best = logits_BV == jnp.max(logits_BV, -1, keepdims=True)
            return jnp.min(jnp.where(is_best, ids, ids.size - 1), -1)  # argmax, four times as fast on XLA:CPU
        logits_BV = logits_BV / self.temperature
        if self.top_k:
            kth = jax.lax.top_k(logits_BV, min(self.top_k, logits_BV.shape[-1]))[0][:, -1:]
            logits_BV = jnp.where(logits_BV < kth, -jnp.inf, logits_BV)
        if self.top_p < 1:
            ordered = jnp.sort(logits_BV, -1, descending=True)
            mass_before = jnp.cumsum(jax.nn.softmax(ordered, -1), -1) - jax.nn.softmax(ordered, -1)
            least = jnp.min(jnp.where(mass_before < self.top_p, ordered, jnp.inf), -1, keepdims=True)
            logits_BV = jnp.where(logits_BV < least, -jnp.inf, logits_BV)
        if self.min_p > 0:
            least = jnp.max(logits_BV, -1, keepdims=True) + np.log(self.min_p)
            logits_BV = jnp.where(logits_BV < least, -jnp.inf, logits_BV)
        return jax.vmap(jax.random.categorical)(keys, logits_BV).astype(jnp.int32)


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
        usable = (ids < stop.shape[1]) & ~np.isin(ids, symbols.unwritten)
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
