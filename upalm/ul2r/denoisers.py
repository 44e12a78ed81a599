"""The R, X and S denoisers, and the base class for your own (U-PaLM section 2.3)."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .spans import Example, corrupt, span_counts, span_noise_mask
from .symbols import MODES, N_SENTINELS, Symbols


@dataclass(frozen=True, kw_only=True)
class Denoiser:
    """A way to split a chunk of tokens into inputs and targets.

    A denoiser of your own is a frozen dataclass that defines `lengths`, `__call__` and, if it uses sentinels,
    `n_sentinels` (examples/my_denoiser.py).
    """

    name: str
    """Shown in metrics and errors."""
    mode: str = "none"
    """Mode token before the inputs: s2s, nlu, nlg or none."""
    weight: float = 1.0
    """Relative share of examples."""
    inputs_eos: bool = False
    """End the inputs with EOS, as T5's features do; the paper does not say. It shows where the inputs end."""
    shortest: float = 1.0
    """Shortest chunk, as a share of the longest that fits; lengths between are equally likely. At 1, as in the paper,
    chunks are as long as fits, so that EOS mostly has one place, whatever the answer is."""

    ends_with_eos: ClassVar[bool] = True

    def __post_init__(self):
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"a denoiser is named {self.name!r}, expected a string that is not empty.")
        if self.mode not in (*MODES, "none"):
            raise ValueError(f"{self.name}: mode is {self.mode!r}, expected one of {[*MODES, 'none']}.")
        if not 0 < self.weight < float("inf"):
            raise ValueError(f"{self.name}: weight is {self.weight}, expected above 0 and finite.")
        if not isinstance(self.inputs_eos, bool):
            raise ValueError(f"{self.name}: inputs_eos is {self.inputs_eos!r}, expected True or False.")
        if not 0 < self.shortest <= 1:
            raise ValueError(f"{self.name}: shortest is {self.shortest}, expected in (0, 1].")

    def lengths(self, length: int) -> tuple[int, int]:
        """Return the most tokens that inputs and targets of a chunk can have, sentinels included."""
        raise TypeError(f"{type(self).__name__} must define lengths().")

    def n_sentinels(self, length: int) -> int:
        """Return how many sentinels a chunk needs; each stands once in the inputs and once in the targets."""
        return 0

    def __call__(self, tokens: np.ndarray, rng: np.random.Generator, symbols: Symbols) -> Example:
        """Denoise a chunk into exactly `length + 2 * n_sentinels(length)` tokens, whatever `rng` draws."""
        raise TypeError(f"{type(self).__name__} must define __call__().")


def _check_spans(what: str, n: object) -> None:
    """Refuse what is no number of spans; True and 3.0 are equal to one."""
    if not isinstance(n, int | np.integer) or isinstance(n, bool) or not 1 <= n <= N_SENTINELS:
        raise ValueError(f"{what} is {n!r}, expected a whole number, 1 to {N_SENTINELS}.")


@dataclass(frozen=True, kw_only=True)
class SpanCorruption(Denoiser):
    """R and X denoisers: mask random spans."""

    mean_span: float
    """Mean length of a noise span in tokens (mu)."""
    corruption_rate: float
    """Share of tokens that are noise (r), in (0, 1)."""
    max_spans: int | None = None
    """Cap on the spans per chunk, which makes them longer. Without a cap, a mixture that needs more than 100
    sentinels is refused."""
    roll: bool = False
    """Rotate the noise mask, so that a single span is not always the tail."""

    def __post_init__(self):
        super().__post_init__()
        if not 1 <= self.mean_span < float("inf"):
            raise ValueError(f"{self.name}: mean_span is {self.mean_span}, expected at least 1 token.")
        if not 0 < self.corruption_rate < 1:
            raise ValueError(f"{self.name}: corruption_rate is {self.corruption_rate}, expected in (0, 1).")
        if self.max_spans is not None:
            _check_spans(f"{self.name}: max_spans", self.max_spans)
        if not isinstance(self.roll, bool):
            raise ValueError(f"{self.name}: roll is {self.roll!r}, expected True or False.")

    def lengths(self, length: int) -> tuple[int, int]:
        n_noise, _ = span_counts(length, self.mean_span, self.corruption_rate)
        n_spans = self.n_sentinels(length)
        return length - n_noise + n_spans, n_noise + n_spans

    def n_sentinels(self, length: int) -> int:
        _, n_spans = span_counts(length, self.mean_span, self.corruption_rate)
        return n_spans if self.max_spans is None else min(n_spans, self.max_spans)

    def __call__(self, tokens: np.ndarray, rng: np.random.Generator, symbols: Symbols) -> Example:
        mask = span_noise_mask(
            len(tokens), self.mean_span, self.corruption_rate, rng, roll=self.roll, max_spans=self.max_spans
        )
        return corrupt(tokens, mask, symbols.sentinels)


@dataclass(frozen=True, kw_only=True)
class Gaps(Denoiser):
    """Mask a few spans anywhere, as people leave gaps. Deviation: the paper has no such denoiser.

    The lengths of spans are geometric: how long a span is so far says nothing about where it ends. In
    `SpanCorruption` the noise of a chunk has a fixed length, so the end of a single span can be counted.
    """

    mean_span: float
    """Mean length of a span in tokens, before half of the chunk caps all spans together."""
    n_spans: int = 1
    """Spans per chunk; fewer in chunks of less than twice as many tokens."""

    def __post_init__(self):
        super().__post_init__()
        if not 1 <= self.mean_span < float("inf"):
            raise ValueError(f"{self.name}: mean_span is {self.mean_span}, expected at least 1 token.")
        _check_spans(f"{self.name}: n_spans", self.n_spans)

    def lengths(self, length: int) -> tuple[int, int]:
        n_spans = self.n_sentinels(length)
        return length, n_spans * (self._longest(length) + 1)

    def n_sentinels(self, length: int) -> int:
        return min(self.n_spans, length // 2)

    def _longest(self, length: int) -> int:
        """Return the longest that each span may be: together they are at most half of the chunk."""
        return length // 2 // max(self.n_sentinels(length), 1)

    def __call__(self, tokens: np.ndarray, rng: np.random.Generator, symbols: Symbols) -> Example:
        n_spans = self.n_sentinels(len(tokens))
        spans = np.minimum(rng.geometric(1 / self.mean_span, n_spans), self._longest(len(tokens)))
        n_kept = len(tokens) - int(spans.sum())
        n_before = np.sort(rng.choice(n_kept + 1, n_spans, replace=False))  # a kept token between any two spans
        starts = n_before + np.cumsum(spans) - spans
        mask = np.zeros(len(tokens), bool)
        for start, n in zip(starts, spans, strict=True):
            mask[start : start + n] = True
        return corrupt(tokens, mask, symbols.sentinels)


_SHORTEST_LINE = 3
"""Tokens; what is shorter, such as `else:`, says little of how an answer continues and where it ends."""


@dataclass(frozen=True, kw_only=True)
class Lines(Gaps):
    """Mask one whole line, as people leave gaps in code. Deviation: the paper has no such denoiser.

    All lines that `find_lines` finds are equally likely if they have at least three tokens, and at most half of the
    chunk. Where there is none, and with a vocabulary whose ids hold no line breaks, the span is one of `Gaps`, whose
    `mean_span` is of no other use here.
    """

    def __post_init__(self):
        super().__post_init__()
        if self.n_spans != 1:
            raise ValueError(f"{self.name}: n_spans is {self.n_spans}, expected 1, since one line is masked.")

    def __call__(self, tokens: np.ndarray, rng: np.random.Generator, symbols: Symbols) -> Example:
        lines = find_lines(tokens, symbols)
        n_tokens = lines[:, 1] - lines[:, 0]
        lines = lines[(n_tokens >= _SHORTEST_LINE) & (n_tokens <= self._longest(len(tokens)))]
        if not len(lines):
            return super().__call__(tokens, rng, symbols)
        start, end = lines[rng.integers(len(lines))]
        mask = np.zeros(len(tokens), bool)
        mask[start:end] = True
        return corrupt(tokens, mask, symbols.sentinels)


def find_lines(tokens: np.ndarray, symbols: Symbols) -> np.ndarray:
    """Return where the lines of a chunk begin and end, [lines, 2].

    A line begins and ends with a token, is not empty, and has something before and after it. A token that holds the
    end of a line and the break after it is part of the line. EOS ends a line, and one begins after it.
    """
    eos = tokens == symbols.eos_id
    opens, closes = np.isin(tokens, symbols.line_starts) | eos, np.isin(tokens, symbols.line_ends) | eos
    breaks = np.flatnonzero(np.isin(tokens, symbols.line_breaks) | eos)
    starts = np.flatnonzero(opens) + 1
    starts = starts[starts <= breaks.max(initial=-1)]
    at = breaks[np.searchsorted(breaks, starts)]  # the next break, before which the line ends, or after which
    lines = np.stack([starts, np.where(closes[at], at, at + 1)], 1)
    ends = closes[at] | np.isin(tokens[at], symbols.line_lasts)
    return lines[ends & (lines[:, 0] < lines[:, 1]) & (lines[:, 1] < len(tokens))]


@dataclass(frozen=True, kw_only=True)
class PrefixLM(Denoiser):
    """S denoiser: split a chunk at a random point; predict the rest from a bidirectional prefix.

    The split is uniform in [1, length - 1] (section 2.3). With `corruption_rate` r below 0.5, at least a
    share 1 - 2r is prefix, so that the mean share of targets is r (UL2's Table 1: 0.25). No sentinel stands
    between the halves. A chunk of one token is all target.
    """

    corruption_rate: float = 0.5
    """Mean share of targets, in (0, 0.5]."""

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.corruption_rate <= 0.5:
            raise ValueError(f"{self.name}: corruption_rate is {self.corruption_rate}, expected in (0, 0.5].")

    def _first_split(self, length: int) -> int:
        return max(1, round((1 - 2 * self.corruption_rate) * (length - 1))) if length > 1 else 0

    def lengths(self, length: int) -> tuple[int, int]:
        return max(length - 1, 0), length - self._first_split(length)

    def __call__(self, tokens: np.ndarray, rng: np.random.Generator, symbols: Symbols) -> Example:
        n = len(tokens)
        split = int(rng.integers(self._first_split(n), n)) if n > 1 else 0
        return Example(tokens[:split], tokens[split:])


@dataclass(frozen=True, kw_only=True)
class Causal(Denoiser):
    """Plain language modelling: no inputs, no mode token, and no EOS beyond those of the text."""

    ends_with_eos: ClassVar[bool] = False

    def lengths(self, length: int) -> tuple[int, int]:
        return 0, length

    def __call__(self, tokens: np.ndarray, rng: np.random.Generator, symbols: Symbols) -> Example:
        return Example(tokens[:0], tokens)
