"""UL2R: the denoisers of U-PaLM, their mixture, and the decoder rows they make. NumPy only.

A chunk of tokens becomes an `Example` of inputs (seen in both directions) and targets (predicted):

    R  `[NLU]`  short spans masked        (mean 3, 15%)     25%
    X  `[NLG]`  long spans, much masked   (mean 32, 50%)    25%
    S  `[S2S]`  everything after a random point             50%

Paper: U-PaLM (arXiv:2210.11399) section 2.3; span sampling as in T5 (arXiv:1910.10683).
"""

import ast
import difflib
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar, NamedTuple

import numpy as np

from upalm.batch import Batch
from upalm.tokenizer import MODES, N_SENTINELS, Symbols


class Example(NamedTuple):
    """One denoised chunk, without mode token and EOS."""

    inputs: np.ndarray
    targets: np.ndarray


# --- Span sampling --------------------------------------------------------------------------------


@lru_cache(maxsize=1 << 16)
def span_counts(length: int, mean_span: float, corruption_rate: float) -> tuple[int, int]:
    """Number of noise tokens and of noise spans in a chunk; both are fixed by its length.

    Rounds in float32 and half to even, as T5 does: float64 differs for 18 of the first 2048 lengths at 15%.
    Deviation: a chunk of one token has nothing to keep and stays whole (0, 0); spans never outnumber the
    tokens kept between them.

    >>> span_counts(568, 3.0, 0.15)
    (85, 28)
    """
    if length < 2:
        return 0, 0
    n_noise = int(np.round(np.float32(length) * np.float32(corruption_rate)))
    n_noise = min(max(n_noise, 1), length - 1)
    n_spans = int(np.round(np.float32(n_noise) / np.float32(mean_span)))
    return n_noise, min(max(n_spans, 1), n_noise, length - n_noise)


def span_noise_mask(
    length: int,
    mean_span: float,
    corruption_rate: float,
    rng: np.random.Generator,
    *,
    roll: bool = False,
    max_spans: int | None = None,
) -> np.ndarray:
    """Bool[length]: which tokens are noise. T5's `random_spans_noise_mask`.

    Noise and kept tokens are each cut into the same number of parts, uniformly at random, and interleaved:
    the first token is kept and the last is noise. With one span that is always the tail; `roll` rotates
    the mask by a random amount that splits no span, so the number of spans stays (and the two ends of a chunk,
    where a span might be split, are noise less often than the rest).

    >>> span_noise_mask(8, 2.0, 0.5, np.random.default_rng(0)).astype(int)
    array([0, 0, 0, 1, 1, 1, 0, 1])
    """
    n_noise, n_spans = span_counts(length, mean_span, corruption_rate)
    n_spans = n_spans if max_spans is None else min(n_spans, max_spans)
    if n_spans == 0:
        return np.zeros(length, bool)
    runs = np.empty(2 * n_spans, np.int64)
    runs[0::2] = _random_partition(length - n_noise, n_spans, rng)
    runs[1::2] = _random_partition(n_noise, n_spans, rng)
    mask = (np.arange(2 * n_spans) % 2 == 1).repeat(runs)
    if roll:
        splits_no_span = np.flatnonzero(~(mask & np.roll(mask, 1)))
        mask = np.roll(mask, -rng.choice(splits_no_span))
    return mask


def _random_partition(total: int, n_parts: int, rng: np.random.Generator) -> np.ndarray:
    """`n_parts` positive integers that add up to `total`, each way equally likely."""
    cuts = np.empty(n_parts + 1, np.int64)
    cuts[0], cuts[1:-1], cuts[-1] = -1, rng.permutation(total - 1)[: n_parts - 1], total - 1
    cuts.sort()
    return cuts[1:] - cuts[:-1]


def corrupt(tokens: np.ndarray, noise_mask: np.ndarray, sentinels: tuple[int, ...]) -> Example:
    """Replace the i-th noise span by the i-th sentinel; targets list each sentinel with its span.

    Deviation from T5, which derives the targets from the complement of the mask and so loses the
    alignment when a mask starts with noise or ends without: here both sides walk the same spans.

    >>> corrupt(np.array([11, 12, 13, 14, 15]), np.array([0, 1, 0, 1, 1], bool), (99, 98))
    Example(inputs=array([11, 99, 13, 98]), targets=array([99, 12, 98, 14, 15]))
    """
    is_input = ~noise_mask
    starts = noise_mask.copy()
    starts[1:] &= is_input[:-1]
    at = starts.nonzero()[0]
    if len(at) > len(sentinels):
        raise ValueError(f"{len(at)} spans but {len(sentinels)} sentinels: cap the spans with max_spans.")
    ids = np.array(sentinels[: len(at)], tokens.dtype)
    inputs = tokens.copy()
    inputs[at] = ids
    is_input |= starts
    noise = tokens[noise_mask]
    # a sentinel's place in the targets: after the noise, and the sentinels, that come before its span
    place = noise_mask.cumsum()[at]
    place += np.arange(-1, len(at) - 1)
    targets = np.empty(len(noise) + len(at), tokens.dtype)
    is_noise = np.ones(len(targets), bool)
    is_noise[place] = False
    targets[is_noise] = noise
    targets[place] = ids
    return Example(inputs[is_input], targets)


def restore(example: Example, sentinels: tuple[int, ...]) -> np.ndarray:
    """The inverse of `corrupt`, for text that itself holds none of `sentinels`.

    >>> restore(Example(np.array([11, 99, 13, 98]), np.array([99, 12, 98, 14, 15])), (99, 98))
    array([11, 12, 13, 14, 15])
    """
    is_slot = np.isin(example.inputs, sentinels)
    starts = np.flatnonzero(np.isin(example.targets, sentinels))
    spans = np.split(example.targets, starts)[1:]
    if is_slot.sum() != len(spans) or any(
        span[0] != slot for span, slot in zip(spans, example.inputs[is_slot], strict=True)
    ):
        raise ValueError(f"sentinels of inputs and targets differ: {example}.")
    pieces = np.split(example.inputs, np.flatnonzero(is_slot))
    whole = [pieces[0]]
    for span, kept in zip(spans, pieces[1:], strict=True):
        whole += [span[1:], kept[1:]]
    return np.concatenate(whole)


# --- Denoisers ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Denoiser:
    """What a mixture is made of. A new denoiser defines `lengths` and `__call__`."""

    name: str
    """Shown in metrics and errors."""
    mode: str = "none"
    """Mode token before the inputs: s2s, nlu, nlg or none."""
    weight: float = 1.0
    """Relative share of examples."""
    inputs_eos: bool = False
    """End the inputs with EOS, as T5's features do; the paper does not say. It shows where the inputs end."""

    ends_with_eos: ClassVar[bool] = True

    def __post_init__(self):
        if self.mode not in (*MODES, "none"):
            raise ValueError(f"{self.name}: mode is {self.mode!r}, expected one of {[*MODES, 'none']}.")
        if not self.weight > 0:
            raise ValueError(f"{self.name}: weight is {self.weight}, expected above 0.")

    def lengths(self, length: int) -> tuple[int, int]:
        """The most tokens that inputs and targets of a chunk of `length` can have, sentinels included."""
        raise TypeError(f"{type(self).__name__} must define lengths().")

    def n_sentinels(self, length: int) -> int:
        """Sentinels that a chunk of `length` needs; each stands once in inputs and once in targets."""
        return 0

    def __call__(self, tokens: np.ndarray, rng: np.random.Generator, symbols: Symbols) -> Example:
        """Denoise a chunk into `length + 2 * n_sentinels(length)` tokens, whatever `rng` gives."""
        raise TypeError(f"{type(self).__name__} must define __call__().")


@dataclass(frozen=True, kw_only=True)
class SpanCorruption(Denoiser):
    """R and X denoisers: mask random spans."""

    mean_span: float
    """Mean length of a noise span in tokens (mu)."""
    corruption_rate: float
    """Share of tokens that are noise (r), in (0, 1)."""
    max_spans: int | None = None
    """Cap on the spans of a chunk (longer spans instead); without one, a mixture that needs more than 100
    sentinels is refused."""
    roll: bool = False
    """Rotate the noise mask, so that a single span is not always the tail."""

    def __post_init__(self):
        super().__post_init__()
        if not self.mean_span >= 1:
            raise ValueError(f"{self.name}: mean_span is {self.mean_span}, expected at least 1 token.")
        if not 0 < self.corruption_rate < 1:
            raise ValueError(f"{self.name}: corruption_rate is {self.corruption_rate}, expected in (0, 1).")
        if self.max_spans is not None and not 1 <= self.max_spans <= N_SENTINELS:
            raise ValueError(f"{self.name}: max_spans is {self.max_spans}, expected 1 to {N_SENTINELS}.")

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
class PrefixLM(Denoiser):
    """S denoiser: split a chunk at a random point, predict the rest from a bidirectional prefix.

    The split is uniform in [1, length - 1] (section 2.3). With `corruption_rate` r below 0.5 at least a
    share 1 - 2r is prefix, so that the mean target share is r (UL2's Table 1: 0.25). No sentinel stands
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
    """Plain language modelling: no inputs, no mode token, no EOS but those of the text."""

    ends_with_eos: ClassVar[bool] = False

    def lengths(self, length: int) -> tuple[int, int]:
        return 0, length

    def __call__(self, tokens: np.ndarray, rng: np.random.Generator, symbols: Symbols) -> Example:
        return Example(tokens[:0], tokens)


# --- Mixtures -------------------------------------------------------------------------------------

Mixture = tuple[Denoiser, ...]

R = SpanCorruption(name="r", mode="nlu", mean_span=3.0, corruption_rate=0.15, weight=0.25)
X = SpanCorruption(name="x", mode="nlg", mean_span=32.0, corruption_rate=0.5, weight=0.25)
S = PrefixLM(name="s", mode="s2s", weight=0.5)

UL2R: Mixture = (R, X, S)
"""U-PaLM's final mixture (section 2.3). Of "mean 32 or up to 50%" for X we take both (as later work does)."""

UL2R_SPLIT_X: Mixture = (
    R,
    replace(X, name="x1", corruption_rate=0.15, weight=0.125),
    replace(X, name="x2", mean_span=3.0, weight=0.125, max_spans=N_SENTINELS),
    S,
)
"""The other reading of "mean 32 or up to 50%": half of X has long spans, half a high rate."""

UL2: Mixture = (
    *(replace(R, name=f"r{i + 1}", mean_span=mu, weight=1.0) for i, mu in enumerate((3.0, 8.0))),
    *(
        replace(X, name=f"x{i + 1}", mean_span=mu, corruption_rate=rate, weight=1.0, max_spans=N_SENTINELS)
        for i, (mu, rate) in enumerate([(3.0, 0.5), (8.0, 0.5), (64.0, 0.15), (64.0, 0.5)])
    ),
    replace(S, corruption_rate=0.25, weight=1.0),
)
"""UL2's seven denoisers (arXiv:2205.05131, Table 1), in equal shares; the first U-PaLM had them. Deviation: spans are
capped at the 100 sentinels, which mean 3 at 50% exceeds from 600 tokens on."""

UL2R_EOS: Mixture = (replace(R, inputs_eos=True), replace(X, inputs_eos=True), S)
"""UL2R with EOS after the inputs of R and X. T5's masks end in noise, so that inputs without it always end in a
sentinel; where text follows the last gap, a small model then does not notice that the inputs end (docs/results.md)."""

CAUSAL: Mixture = (Causal(name="causal"),)
"""The control: the same steps of plain language modelling."""

PREFIX_LM: Mixture = (replace(S, weight=1.0),)
"""The S denoiser alone."""

SUPERVISED: Mixture = (PrefixLM(name="supervised"),)
"""Finetuning: inputs and targets are given, in the layout of the S denoiser and without a mode token."""

MIXTURES = {
    "ul2r": UL2R,
    "ul2r_eos": UL2R_EOS,
    "ul2r_split_x": UL2R_SPLIT_X,
    "ul2": UL2,
    "prefix_lm": PREFIX_LM,
    "causal": CAUSAL,
}
"""By name. Add your own: `ul2r.MIXTURES["mine"] = (ul2r.R, Mine(name="mine"))`."""

DENOISERS = {"SpanCorruption": SpanCorruption, "PrefixLM": PrefixLM, "Causal": Causal}


def mixture(text: str) -> Mixture:
    """A mixture by its name, or written as in Python: denoisers with keyword arguments, joined by commas.

    >>> mixture("SpanCorruption(name='r', mode='nlu', mean_span=3.0, corruption_rate=0.15), PrefixLM(name='s')")
    (SpanCorruption(name='r', mode='nlu', ..., mean_span=3.0, ...), PrefixLM(name='s', mode='none', ...))

    Raises:
        ValueError: an unknown name (the nearest is offered), or a text that is no such list.
    """
    if text in MIXTURES:
        return MIXTURES[text]
    if "(" not in text:
        near = difflib.get_close_matches(text, MIXTURES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {sorted(MIXTURES)}."
        raise ValueError(f"no mixture {text!r}: {hint}")
    try:
        body = ast.parse(f"[{text}]", mode="eval").body
        calls = body.elts if isinstance(body, ast.List) else []
        made = tuple(_denoiser(call) for call in calls)
    except (SyntaxError, TypeError) as e:
        raise ValueError(f"mixture {text!r}: {e}. Expected, for example, {_EXAMPLE_MIXTURE!r}.") from e
    names = [d.name for d in made]
    if len(set(names)) < len(names):
        raise ValueError(f"mixture {text!r} has the names {names}: give each denoiser its own.")
    return made


_EXAMPLE_MIXTURE = (
    "SpanCorruption(name='r', mode='nlu', mean_span=3.0, corruption_rate=0.15, weight=0.5), PrefixLM(name='s')"
)


def _denoiser(call: ast.expr) -> Denoiser:
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in DENOISERS):
        raise TypeError(f"{ast.unparse(call)} is none of {', '.join(DENOISERS)}")
    if call.args or any(k.arg is None for k in call.keywords):
        raise TypeError(f"{ast.unparse(call)}: give every argument its name")
    return DENOISERS[call.func.id](**{str(k.arg): ast.literal_eval(k.value) for k in call.keywords})


class Budget(NamedTuple):
    """How long the inputs, the targets and the whole of a segment may get, mode token and EOS counted."""

    inputs: int
    targets: int
    total: int

    @classmethod
    def split(cls, seq_len: int) -> "Budget":
        """Half a row each for inputs and targets: the paper's 1024 + 1024."""
        return cls(seq_len // 2, seq_len // 2, seq_len)

    @classmethod
    def joint(cls, seq_len: int) -> "Budget":
        """Inputs and targets share the row."""
        return cls(seq_len, seq_len, seq_len)


class Segmenter:
    """One denoiser under a budget: chunk -> segment, with lengths known before any sampling.

    Raises:
        ValueError: no chunk of two tokens fits, or the longest chunk needs more sentinels than there are.
    """

    def __init__(self, denoiser: Denoiser, budget: Budget, symbols: Symbols):
        self.denoiser, self.symbols = denoiser, symbols
        self.mode_ids = np.asarray(symbols.modes.get(denoiser.mode, ()), np.int32)
        self.eos_ids = np.asarray([symbols.eos_id][: denoiser.ends_with_eos], np.int32)
        self.inputs_eos_ids = np.asarray([symbols.eos_id][: denoiser.inputs_eos], np.int32)
        n = 0
        while self._fits(n + 1, budget):
            n += 1
        if n < 2:
            raise ValueError(
                f"denoiser {denoiser.name!r} does not fit: with its mode token and EOS not even two tokens "
                f"have room in {budget.inputs} inputs, {budget.targets} targets, {budget.total} in all. "
                "Use a longer seq_len."
            )
        if denoiser.n_sentinels(n) > len(symbols.sentinels):
            raise ValueError(
                f"denoiser {denoiser.name!r} needs {denoiser.n_sentinels(n)} sentinels for chunks of {n} "
                f"tokens and there are {len(symbols.sentinels)}: shorten seq_len or set max_spans."
            )
        self.segment_lengths = [self.segment_length(i) for i in range(n + 1)]
        """Positions that a chunk takes, by its tokens."""
        # the running maximum: a denoiser of yours may need less room for more tokens
        most = np.maximum.accumulate(self.segment_lengths)
        longest = np.searchsorted(most, np.arange(budget.total + 1), side="right") - 1
        self.longest_chunks = np.maximum(longest, 0).tolist()
        """The most tokens whose segment fits, by the room there is; 0 if none does."""

    def segment_length(self, n_tokens: int) -> int:
        """Positions of a row that a chunk takes: mode token, tokens, each sentinel twice, EOS."""
        n_added = len(self.mode_ids) + len(self.inputs_eos_ids) + len(self.eos_ids)
        return n_tokens + 2 * self.denoiser.n_sentinels(n_tokens) + n_added

    def _fits(self, n_tokens: int, budget: Budget) -> bool:
        n_inputs, n_targets = self.denoiser.lengths(n_tokens)
        n_inputs += len(self.mode_ids) + len(self.inputs_eos_ids)
        n_targets += len(self.eos_ids)
        # without inputs there are no two halves: the targets have the row
        halves_fit = n_inputs == 0 or (n_inputs <= budget.inputs and n_targets <= budget.targets)
        return halves_fit and self.segment_length(n_tokens) <= budget.total

    def __call__(self, tokens: np.ndarray, rng: np.random.Generator) -> Example:
        """A chunk denoised and framed."""
        return self.framed(self.denoiser(tokens, rng, self.symbols))

    def framed(self, example: Example) -> Example:
        """Inputs with their mode token (and EOS, where asked for), targets with their EOS."""
        inputs = (self.mode_ids, example.inputs, self.inputs_eos_ids)
        return Example(np.concatenate(inputs), np.concatenate((example.targets, self.eos_ids)))

    def write(self, row: Batch, at: int, example: Example, segment_id: int, denoiser_id: int) -> int:
        """`write_segment` with this vocabulary's BOS."""
        return write_segment(row, at, example, segment_id, denoiser_id, self.symbols.bos_id)


def write_segment(row: Batch, at: int, example: Example, segment_id: int, denoiser_id: int, bos_id: int) -> int:
    """Write a segment into a row of `Batch` at position `at`; returns the position after it.

    The shift to the right happens here and nowhere else.

    Paper: U-PaLM section 2.2: inputs and targets are joined first, then packed.
    """
    n_inputs = len(example.inputs)
    end = at + n_inputs + len(example.targets)
    np.concatenate(example, out=row.target_tokens[at:end], casting="same_kind")
    row.input_tokens[at] = bos_id
    row.input_tokens[at + 1 : end] = row.target_tokens[at : end - 1]
    row.loss_weights[at + n_inputs : end] = 1
    row.positions[at:end] = np.arange(end - at, dtype=np.int16)
    row.segment_ids[at:end] = segment_id
    row.prefix_mask[at : min(at + n_inputs + 1, end)] = True
    row.denoiser_ids[at:end] = denoiser_id
    return end
