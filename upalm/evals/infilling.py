"""Infilling: gaps in held-out text, and what a model makes of them.

A row has the parts that are kept, x_0 .. x_k, and the spans that are missing, m_1 .. m_k. The prompt is
`[mode] x_0 <extra_id_0> x_1 ... x_k`, the target `<extra_id_0> m_1 <extra_id_1> m_2 ... EOS`; each piece is encoded
by itself. `evals.humaneval` and `evals.natural` have rows of benchmarks and of prose.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

from upalm.evals import matches
from upalm.evals.statistics import Estimate, mean, ratio
from upalm.evals.task import TooShort
from upalm.infer import Mode, infill_batch, prompt_ids, score
from upalm.model import Decoder
from upalm.text import Document
from upalm.tokenizer import Tokenizer

_LN2 = float(np.log(2))


class Row(NamedTuple):
    """A text with k gaps: k + 1 kept parts around k spans."""

    parts: tuple[str, ...]
    spans: tuple[str, ...]

    @property
    def n_bytes(self) -> int:
        """Length of the missing text."""
        return sum(len(span.encode()) for span in self.spans)


class Bits(NamedTuple):
    """Bits that each row's spans cost, and their bytes."""

    bits: np.ndarray
    n_bytes: np.ndarray

    def of(self, rows: np.ndarray) -> "Bits":
        """Those of some rows."""
        return Bits(self.bits[rows], self.n_bytes[rows])


# --- Rows -----------------------------------------------------------------------------------------


def line_rows(
    documents: Sequence[Document], n: int, fits: Callable[[Row], bool], *, left: int = 400, right: int = 200
) -> list[Row]:
    """Single-line gaps: one whole line is missing, with up to `left` and `right` bytes of whole lines around.

    Args:
        documents: to draw from, each equally often.
        n: rows wanted; fewer come back if the text is too short.
        fits: refuses rows, such as those with more tokens than the model takes.
        left: bytes of context before the gap.
        right: bytes of context after it.

    Raises:
        ValueError: the documents are too short for a single row.
    """
    return _draw_rows(_cut_line, documents, n, fits, left, right)


def word_rows(
    documents: Sequence[Document], n: int, fits: Callable[[Row], bool], *, left: int = 400, right: int = 200
) -> list[Row]:
    """Multi-span gaps: three spans of 1 to 4 words, at least 3 words apart, in one window. See `line_rows`."""
    return _draw_rows(_cut_words, documents, n, fits, left, right)


def _draw_rows(cut, documents: Sequence[Document], n: int, fits, left: int, right: int) -> list[Row]:
    """Row i draws from its own generator, so that a longer list begins with a shorter one."""
    usable = [d for d in documents if len(d.text) > left + right and "<extra_id_" not in d.text]
    if not usable:
        raise ValueError(f"no held-out document is longer than {left + right} characters: give more text.")
    rows: list[Row] = []
    for i in range(50 * n):
        if len(rows) == n:
            return rows
        rng = random.Random(f"{cut.__name__}:{i}")
        row = cut(rng.choice(usable).text, rng, left, right)
        if row is not None and fits(row):
            rows.append(row)
    if not rows:
        raise ValueError("the held-out text has no line that could be left out.")
    return rows


def _window(lines: list[str], i: int, left: int, right: int) -> tuple[str, str]:
    """Whole lines before and after line i."""
    before, after = "", ""
    for line in reversed(lines[:i]):
        if len((line + before).encode()) > left:
            break
        before = line + before
    for line in lines[i + 1 :]:
        if len((after + line).encode()) > right:
            break
        after += line
    return before, after


def _cut_line(text: str, rng: random.Random, left: int, right: int) -> Row | None:
    lines = text.split("\n")
    lines = [line + "\n" for line in lines[:-1]] + lines[-1:]
    i = rng.randrange(len(lines))
    span = lines[i].rstrip("\n")
    before, after = _window(lines, i, left, right)
    if not 8 <= len(span.strip()) <= 60 or len(before) < left // 4 or len(after) < right // 4:
        return None
    return Row((before, "\n" + after), (span,))


def _cut_words(text: str, rng: random.Random, left: int, right: int) -> Row | None:
    lines = text.split("\n")
    lines = [line + "\n" for line in lines[:-1]] + lines[-1:]
    i = rng.randrange(len(lines))
    before, after = _window(lines, i, (left + right) // 2, (left + right) // 2)
    window = before + lines[i] + after
    words = matches.words(window)
    if len(words) < 30:
        return None
    at, cuts = rng.randint(3, len(words) // 4), []
    for _ in range(3):
        n_words = rng.randint(1, 4)
        if at + n_words >= len(words):
            return None
        cuts.append((words[at][0], words[at + n_words - 1][1]))
        at += n_words + 3 + rng.randint(0, len(words) // 5)
    edges = [0, *(x for cut in cuts for x in cut), len(window)]
    pieces = [window[a:b] for a, b in zip(edges, edges[1:], strict=False)]
    return Row(tuple(pieces[0::2]), tuple(pieces[1::2]))


def shuffled_suffixes(rows: Sequence[Row]) -> list[Row]:
    """The control: every row with the right context of another, far enough away to be of another place."""
    shift = max(len(rows) // 2, 1)
    return [Row((row.parts[0], rows[(i + shift) % len(rows)].parts[-1]), row.spans) for i, row in enumerate(rows)]


# --- Teacher-forced -------------------------------------------------------------------------------


class Forced(NamedTuple):
    """What each row's spans cost, token by token, given both sides and the spans before."""

    bits: Bits
    nll: np.ndarray
    """In nats, over the tokens of the spans; sentinels are fed and not counted."""
    n_tokens: np.ndarray
    n_best: np.ndarray
    """Tokens that no other was likelier than."""
    closing_nll: np.ndarray
    """Mean over the row's spans, in nats: does the model know where each ends?"""

    def estimates(self) -> dict[str, Estimate]:
        """Pooled over the rows."""
        return {
            "span_bits_per_byte": ratio(*self.bits),
            "span_nll_per_token": ratio(self.nll, self.n_tokens),
            "span_token_acc": ratio(self.n_best, self.n_tokens),
            "closing_nll": mean(self.closing_nll),
        }


def forced(model: Decoder, tokenizer: Tokenizer, rows: Sequence[Row], mode: Mode) -> Forced:
    """Score the true spans: no decoding, so the cheap measure of infilling."""
    examples, spans = [], []
    for row in rows:
        target, is_span = [], []
        for sentinel, span in zip(tokenizer.symbols.sentinels, row.spans, strict=False):
            ids = tokenizer.encode(span)
            target += [sentinel, *ids]
            is_span += [False] + [True] * len(ids)
        examples.append((prompt_ids(tokenizer, row.parts, mode), [*target, tokenizer.symbols.eos_id]))
        spans.append(np.array([*is_span, False]))
    columns = [
        (-x.log_probs[inside].sum(), inside.sum(), x.is_best[inside].sum(), -x.log_probs[1:][~inside[1:]].mean())
        for x, inside in zip(score(model, examples, bos_id=tokenizer.symbols.bos_id), spans, strict=True)
    ]
    nll, n_tokens, n_best, closing_nll = np.array(columns).T
    bits = Bits(nll / _LN2, np.array([row.n_bytes for row in rows]))
    return Forced(bits, nll, n_tokens, n_best, closing_nll)


def infill_gain(left_only: Bits, both_sides: Bits) -> Estimate:
    """Bits a byte that the text after the gap saves, less what the infilling form costs: above 0, it helps.

    The control is `shuffled_suffixes` for `both_sides`: there the gain must vanish.
    """
    return ratio(left_only.bits - both_sides.bits, both_sides.n_bytes)


def left_only_bits(
    model: Decoder, tokenizer: Tokenizer, rows: Sequence[Row], mode: Mode, attention: Literal["prefix", "causal"]
) -> Bits:
    """Bits of single spans as a continuation of the left context."""
    examples = [(prompt_ids(tokenizer, row.parts[:1], mode), tokenizer.encode(row.spans[0])) for row in rows]
    scored = score(model, examples, attention=attention, bos_id=tokenizer.symbols.bos_id)
    bits = [-x.log_probs.sum() / _LN2 for x in scored]
    return Bits(np.array(bits), np.array([row.n_bytes for row in rows]))


def text_bits(model: Decoder, tokenizer: Tokenizer, texts: Sequence[str]) -> Bits:
    """Bits of whole texts, left to right."""
    examples = [([], tokenizer.encode(t)) for t in texts]
    bits = [-x.log_probs.sum() / _LN2 for x in score(model, examples, bos_id=tokenizer.symbols.bos_id)]
    return Bits(np.array(bits), np.array([len(t.encode()) for t in texts]))


def excerpts(documents: Sequence[Document], n: int, fits: Callable[[str], bool]) -> Iterator[str]:
    """The first whole lines, as many as fit, of each of up to `n` documents."""
    for document in documents[:n]:
        text = ""
        for line in document.text.split("\n"):
            if not fits(text + line + "\n"):
                break
            text += line + "\n"
        if text.strip():
            yield text


# --- Decoded --------------------------------------------------------------------------------------


class Decoded(NamedTuple):
    """Greedy infills of rows."""

    spans: list[tuple[str, ...]]
    format_ok: np.ndarray


def decode_rows(
    model: Decoder,
    tokenizer: Tokenizer,
    rows: Sequence[Row],
    mode: Mode,
    *,
    max_new_tokens: int | None = None,
    constrained: bool = True,
    stop: Sequence[str] = (),
    batch_size: int = 32,
) -> Decoded:
    """Fill the gaps of every row greedily, each with up to `max_new_tokens`, or twice the true span's and 8."""
    texts = [row.parts for row in rows]
    limits = [_limits(tokenizer, row) if max_new_tokens is None else [max_new_tokens] * len(row.spans) for row in rows]
    options = {"mode": mode, "constrained": constrained, "stop": stop, "batch_size": batch_size}
    filled = [best for best, *_ in infill_batch(model, tokenizer, texts, max_new_tokens=limits, **options)]
    return Decoded([tuple(f.spans) for f in filled], np.array([f.format_ok for f in filled]))


def _limits(tokenizer: Tokenizer, row: Row) -> list[int]:
    return [2 * len(tokenizer.encode(span)) + 8 for span in row.spans]


def that_fit(model: Decoder, tokenizer: Tokenizer, rows: Sequence[Row], mode: Mode) -> list[Row]:
    """The rows that the model can hold while `decode_rows` fills them.

    Raises:
        TooShort: there are none.
    """

    def length(row: Row) -> int:
        return len(prompt_ids(tokenizer, row.parts, mode)) + sum(_limits(tokenizer, row)) + len(row.parts) + 1

    lengths = [length(row) for row in rows]
    fitting = [row for row, n in zip(rows, lengths, strict=True) if n <= model.config.seq_len]
    if not fitting:
        raise TooShort(
            f"none of {len(rows)} rows fits the model's {model.config.seq_len} tokens; "
            f"the shortest takes {min(lengths, default=0)}."
        )
    return fitting


def exact_lines(decoded: Decoded, rows: Sequence[Row]) -> np.ndarray:
    """Whether each row's one span is the missing line."""
    pairs = zip(decoded.spans, rows, strict=True)
    return np.array([matches.exact_line(spans[0], row.spans[0]) for spans, row in pairs])
