"""Score gaps: teacher-forced bits of the missing spans, and greedy fills.

A row has kept parts x_0 .. x_k and missing spans m_1 .. m_k. The prompt is `[mode] x_0 <extra_id_0> x_1 ... x_k`, the
target `<extra_id_0> m_1 <extra_id_1> m_2 ... EOS`; each piece is encoded by itself.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from upalm.data.tokenizer import Tokenizer
from upalm.evals import text_metrics
from upalm.evals.bootstrap import Estimate, mean, ratio
from upalm.evals.infilling.gaps import Gap
from upalm.evals.task import RowsTooShort
from upalm.inference.config import Attention, GenerationConfig, Mode
from upalm.inference.generation import infill_batch
from upalm.inference.prompts import prompt_ids
from upalm.inference.scoring import score
from upalm.model.palm import Decoder

_LN2 = float(np.log(2))


class Bits(NamedTuple):
    """Cost of each row's spans, and their length."""

    bits: np.ndarray
    n_bytes: np.ndarray

    def select(self, rows: np.ndarray) -> "Bits":
        """Return some of the rows."""
        return Bits(self.bits[rows], self.n_bytes[rows])


# --- Teacher-forced -------------------------------------------------------------------------------


class SpanScores(NamedTuple):
    """Teacher-forced cost of each row's spans, given both sides and the spans before."""

    bits: Bits
    nll: np.ndarray
    """In nats, summed over the tokens of the spans. Sentinels are fed and not counted."""
    n_tokens: np.ndarray
    n_best: np.ndarray
    """Tokens that no other token was likelier than."""
    closing_nll: np.ndarray
    """In nats, averaged over the row's spans: cost of the sentinel or EOS that closes a span."""

    def estimates(self) -> dict[str, Estimate]:
        """Pool over the rows."""
        return {
            "span_bits_per_byte": ratio(*self.bits),
            "span_nll_per_token": ratio(self.nll, self.n_tokens),
            "span_token_acc": ratio(self.n_best, self.n_tokens),
            "closing_nll": mean(self.closing_nll),
        }


def score_spans(
    model: Decoder,
    tokenizer: Tokenizer,
    rows: Sequence[Gap],
    mode: Mode,
    inputs_eos: bool = False,
    attention: Attention = "prefix",
) -> SpanScores:
    """Score the true spans without decoding: the cheap measure of infilling."""
    examples, spans = [], []
    for row in rows:
        target, is_span = [], []
        for sentinel, span in zip(tokenizer.symbols.sentinels, row.spans, strict=False):
            ids = tokenizer.encode(span)
            target += [sentinel, *ids]
            is_span += [False] + [True] * len(ids)
        examples.append((prompt_ids(tokenizer, row.parts, mode, inputs_eos), [*target, tokenizer.symbols.eos_id]))
        spans.append(np.array([*is_span, False]))
    scored = score(model, examples, attention=attention, bos_id=tokenizer.symbols.bos_id)
    columns = [
        (-x.log_probs[inside].sum(), inside.sum(), x.is_best[inside].sum(), -x.log_probs[1:][~inside[1:]].mean())
        for x, inside in zip(scored, spans, strict=True)
    ]
    nll, n_tokens, n_best, closing_nll = np.array(columns).T
    bits = Bits(nll / _LN2, np.array([row.n_bytes for row in rows]))
    return SpanScores(bits, nll, n_tokens, n_best, closing_nll)


def infill_gain(left_only: Bits, both_sides: Bits) -> Estimate:
    """Estimate the bits per byte that filling saves against continuing the text before the gap.

    Above 0, filling costs less. Whether the text after the gap is used is another question, which `suffix_use` of
    `held_out.GapBits` answers: the form of a prompt with a gap has a cost of its own, too. With `shuffle_suffixes` for
    `both_sides` the gain is below 0 as a rule: above 0 there, it would not come from the text after the gap.
    """
    return ratio(left_only.bits - both_sides.bits, both_sides.n_bytes)


def score_left_only(
    model: Decoder, tokenizer: Tokenizer, rows: Sequence[Gap], mode: Mode, attention: Attention
) -> Bits:
    """Score each row's spans as continuations of all the text before them, in which earlier gaps are filled."""
    examples, row_ids = [], []
    for i, row in enumerate(rows):
        before = ""
        for part, span in zip(row.parts, row.spans, strict=False):
            before += part
            examples.append((prompt_ids(tokenizer, (before,), mode), tokenizer.encode(span)))
            row_ids.append(i)
            before += span
    scores = score(model, examples, attention=attention, bos_id=tokenizer.symbols.bos_id)
    bits = np.bincount(row_ids, [-x.log_probs.sum() / _LN2 for x in scores], len(rows))
    return Bits(bits, np.array([row.n_bytes for row in rows]))


def score_texts(model: Decoder, tokenizer: Tokenizer, texts: Sequence[str]) -> Bits:
    """Score whole texts from left to right."""
    examples = [([], tokenizer.encode(text)) for text in texts]
    bits = [-x.log_probs.sum() / _LN2 for x in score(model, examples, bos_id=tokenizer.symbols.bos_id)]
    return Bits(np.array(bits), np.array([len(text.encode()) for text in texts]))


# --- Decoded --------------------------------------------------------------------------------------


class Fills(NamedTuple):
    """Greedy fills of rows."""

    spans: list[tuple[str, ...]]
    format_ok: np.ndarray
    """Whether each answer had one span per gap, in order, and ended."""


def decode_rows(
    model: Decoder,
    tokenizer: Tokenizer,
    rows: Sequence[Gap],
    mode: Mode,
    *,
    max_new_tokens: int | None = None,
    constrained: bool = True,
    stop: Sequence[str] = (),
    inputs_eos: bool = False,
    attention: Attention = "prefix",
    batch_size: int = 32,
) -> Fills:
    """Fill the gaps of every row greedily.

    Args:
        model: the model.
        tokenizer: of the model.
        rows: texts with gaps; the true spans decide the limits.
        mode: mode token of the prompt.
        max_new_tokens: limit of every span; None is twice the true span and 8 tokens more.
        constrained: enforce the form of the answer by the grammar.
        stop: strings that end a span.
        inputs_eos: whether training ended inputs with EOS (`CheckpointInfo.inputs_eos`).
        attention: mask of the prompt.
        batch_size: rows to fill at once.
    """
    texts = [row.parts for row in rows]
    limits = [
        limits_of(tokenizer, row) if max_new_tokens is None else [max_new_tokens] * len(row.spans) for row in rows
    ]
    config = GenerationConfig(mode=mode, constrained=constrained, stop=stop, attention=attention, batch_size=batch_size)
    fills = infill_batch(model, tokenizer, texts, config, inputs_eos=inputs_eos, limits=limits)
    return Fills([tuple(fill.spans) for fill in fills], np.array([fill.format_ok for fill in fills]))


def limits_of(tokenizer: Tokenizer, row: Gap) -> list[int]:
    """Return the limit of each gap of a row: twice the true span and 8 tokens more."""
    return [2 * len(tokenizer.encode(span)) + 8 for span in row.spans]


def drop_too_long(
    model: Decoder, tokenizer: Tokenizer, rows: Sequence[Gap], mode: Mode, inputs_eos: bool = False
) -> list[Gap]:
    """Return the rows that fit the model while `decode_rows` fills them.

    Raises:
        RowsTooShort: no row fits.
    """
    prompts = [prompt_ids(tokenizer, row.parts, mode, inputs_eos) for row in rows]
    added = [sum(limits_of(tokenizer, row)) + len(row.parts) + 1 for row in rows]
    lengths = [len(ids) + n for ids, n in zip(prompts, added, strict=True)]
    fitting = [row for row, n in zip(rows, lengths, strict=True) if n <= model.config.seq_len]
    if not fitting:
        raise RowsTooShort(
            f"none of {len(rows)} rows fits the model's {model.config.seq_len} tokens; "
            f"the shortest takes {min(lengths, default=0)}."
        )
    return fitting


def fill_and_score(
    model: Decoder,
    tokenizer: Tokenizer,
    rows: Sequence[Gap],
    mode: Mode,
    *,
    stop: Sequence[str] = (),
    inputs_eos: bool = False,
) -> tuple[list[Gap], list[tuple[str, ...]], dict[str, Estimate]]:
    """Return the rows that fit, their greedy fills, and `SpanScores.estimates` with `format_ok` without the grammar.

    Raises:
        RowsTooShort: no row fits the model.
    """
    fitting = drop_too_long(model, tokenizer, rows, mode, inputs_eos)
    filled = decode_rows(model, tokenizer, fitting, mode, stop=stop, inputs_eos=inputs_eos)
    free = decode_rows(model, tokenizer, fitting, mode, constrained=False, inputs_eos=inputs_eos)
    estimates = score_spans(model, tokenizer, fitting, mode, inputs_eos).estimates()
    return fitting, filled.spans, estimates | {"format_ok": mean(free.format_ok)}


def match_lines(fills: Fills, rows: Sequence[Gap]) -> np.ndarray:
    """Compare each row's one span with the missing line: Bool[rows]."""
    pairs = zip(fills.spans, rows, strict=True)
    return np.array([text_metrics.match_line(spans[0], row.spans[0]) for spans, row in pairs])
