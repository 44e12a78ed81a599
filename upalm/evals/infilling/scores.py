"""Infilling: gaps in held-out text, and what a model makes of them.

A row has the parts that are kept, x_0 .. x_k, and the spans that are missing, m_1 .. m_k. The prompt is
`[mode] x_0 <extra_id_0> x_1 ... x_k`, the target `<extra_id_0> m_1 <extra_id_1> m_2 ... EOS`; each piece is encoded
by itself. `evals.humaneval` and `evals.natural` have rows of benchmarks and of prose.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from upalm.data.tokenizer import Tokenizer
from upalm.evals import text_metrics
from upalm.evals.bootstrap import Estimate, mean, ratio
from upalm.evals.infilling.gaps import Gap
from upalm.evals.task import TooShort
from upalm.inference.generation import infill_batch
from upalm.inference.prompts import Mode, prompt_ids
from upalm.inference.scoring import score
from upalm.model.palm import Decoder

_LN2 = float(np.log(2))


class Bits(NamedTuple):
    """Bits that each row's spans cost, and their bytes."""

    bits: np.ndarray
    n_bytes: np.ndarray

    def of(self, rows: np.ndarray) -> "Bits":
        """Those of some rows."""
        return Bits(self.bits[rows], self.n_bytes[rows])


# --- Teacher-score_spans -------------------------------------------------------------------------------


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


def score_spans(
    model: Decoder, tokenizer: Tokenizer, rows: Sequence[Gap], mode: Mode, inputs_eos: bool = False
) -> Forced:
    """Score the true spans: no decoding, so the cheap measure of infilling."""
    examples, spans = [], []
    for row in rows:
        target, is_span = [], []
        for sentinel, span in zip(tokenizer.symbols.sentinels, row.spans, strict=False):
            ids = tokenizer.encode(span)
            target += [sentinel, *ids]
            is_span += [False] + [True] * len(ids)
        examples.append((prompt_ids(tokenizer, row.parts, mode, inputs_eos), [*target, tokenizer.symbols.eos_id]))
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
    model: Decoder, tokenizer: Tokenizer, rows: Sequence[Gap], mode: Mode, attention: Literal["prefix", "causal"]
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


# --- Decoded --------------------------------------------------------------------------------------


class Decoded(NamedTuple):
    """Greedy infills of rows."""

    spans: list[tuple[str, ...]]
    format_ok: np.ndarray


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
) -> Decoded:
    """Fill the gaps of every row greedily, each with up to `max_new_tokens`, or twice the true span's and 8."""
    texts = [row.parts for row in rows]
    limits = [_limits(tokenizer, row) if max_new_tokens is None else [max_new_tokens] * len(row.spans) for row in rows]
    options = {"mode": mode, "constrained": constrained, "stop": stop, "batch_size": 32, "inputs_eos": inputs_eos}
    filled = [best for best, *_ in infill_batch(model, tokenizer, texts, max_new_tokens=limits, **options)]
    return Decoded([tuple(f.spans) for f in filled], np.array([f.format_ok for f in filled]))


def _limits(tokenizer: Tokenizer, row: Gap) -> list[int]:
    return [2 * len(tokenizer.encode(span)) + 8 for span in row.spans]


def drop_too_long(
    model: Decoder, tokenizer: Tokenizer, rows: Sequence[Gap], mode: Mode, inputs_eos: bool = False
) -> list[Gap]:
    """The rows that the model can hold while `decode_rows` fills them.

    Raises:
        TooShort: there are none.
    """

    def length(row: Gap) -> int:
        return (
            len(prompt_ids(tokenizer, row.parts, mode, inputs_eos)) + sum(_limits(tokenizer, row)) + len(row.parts) + 1
        )

    lengths = [length(row) for row in rows]
    fitting = [row for row, n in zip(rows, lengths, strict=True) if n <= model.config.seq_len]
    if not fitting:
        raise TooShort(
            f"none of {len(rows)} rows fits the model's {model.config.seq_len} tokens; "
            f"the shortest takes {min(lengths, default=0)}."
        )
    return fitting


def exact_lines(decoded: Decoded, rows: Sequence[Gap]) -> np.ndarray:
    """Whether each row's one span is the missing line."""
    pairs = zip(decoded.spans, rows, strict=True)
    return np.array([text_metrics.exact_line(spans[0], row.spans[0]) for spans, row in pairs])
