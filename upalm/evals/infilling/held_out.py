"""Measure a model on held-out text: bits per byte from left to right and in gaps, and its fills."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import numpy as np

from upalm.data.readers import Document
from upalm.data.tokenizer import Tokenizer
from upalm.evals.bootstrap import Estimate, mean, ratio
from upalm.evals.infilling import gaps, scores
from upalm.evals.infilling.gaps import Gap
from upalm.inference.config import Attention, Mode
from upalm.inference.prompts import prompt_ids
from upalm.model.palm import Decoder

MODES: tuple[Mode, ...] = ("none", "nlu", "nlg")
MAX_SPAN_TOKENS = 40
"""Longest fill of a gap."""
KINDS = {
    "line": "single lines",
    "new_name": "new words",
    "few_words": "1 to 4 words",
    "multi_span": "three gaps at once",
}
"""Words for the kinds of gaps."""
_LEFT_ONLY_FORMATS: tuple[tuple[Mode, Attention], ...] = (("none", "causal"), ("none", "prefix"), ("s2s", "prefix"))


def cut_gaps(
    documents: Sequence[Document], tokenizer: Tokenizer, seq_len: int, n: int, inputs_eos: bool = False
) -> tuple[list[Gap], list[Gap]]:
    """Cut single-line and three-span gaps that fit a row with any mode token and the longest fill.

    Args:
        documents: held-out text.
        tokenizer: of the model.
        seq_len: longest prompt with its answer, in tokens; no more than the model's rows.
        n: gaps of each kind.
        inputs_eos: whether training ended inputs with EOS (`CheckpointInfo.inputs_eos`).

    Raises:
        ValueError: the documents are too short.
    """
    fits = _room(tokenizer, seq_len, inputs_eos)
    return gaps.cut_lines(documents, n, fits), gaps.cut_words(documents, n, fits)


def cut_kinds(
    documents: Sequence[Document],
    tokenizer: Tokenizer,
    seq_len: int,
    words: Sequence[Gap],
    inputs_eos: bool = False,
) -> dict[str, Sequence[Gap]]:
    """Cut gaps of further kinds for `measure`, as many of each as there are `words`.

    Args:
        documents: held-out texts.
        tokenizer: the model's.
        seq_len: most tokens of a prompt with its answer.
        words: three-span gaps, as `cut_gaps` cuts them.
        inputs_eos: leave room for EOS after the inputs.

    Returns:
        Rows by kind: "new_name" (`gaps.cut_names`), "few_words" (the middle gap of each of `words`) and "multi_span"
        (`words`).

    Raises:
        ValueError: the documents are too short.
    """
    names = gaps.cut_names(documents, len(words), _room(tokenizer, seq_len, inputs_eos))
    return {"new_name": names, "few_words": gaps.fill_all_but_middle(words), "multi_span": words}


def describe_shortfall(rows: Mapping[str, Sequence[Gap]], n: int, n_decoded: int, seq_len: int) -> str:
    """Say of which kinds fewer gaps were found than asked for; "" if of none.

    Args:
        rows: gaps by kind, with the names of `KINDS`.
        n: gaps of each kind that were asked for.
        n_decoded: single lines that were to be decoded.
        seq_len: most tokens of a prompt with its answer.
    """
    found = [f"{len(some)} of {n} {KINDS[kind]}" for kind, some in rows.items() if len(some) < n]
    if not found:
        return ""
    n_lines = len(rows["line"])
    decoded = f", so that {n_lines} lines are decoded instead of {n_decoded}" if n_lines < n_decoded else ""
    return (
        f"Fewer gaps than asked for: {', '.join(found)}{decoded}. Those that fit rows of {seq_len} tokens are the "
        "short ones: longer rows or more text give more."
    )


def describe_repeats(rows: Mapping[str, Sequence[Gap]]) -> str:
    """Say of which kinds some gaps repeat others, which intervals do not know of; "" if of none.

    Args:
        rows: gaps by kind, with the names of `KINDS`.
    """
    repeated = [
        f"{len(set(some))} of {len(some)} {KINDS[kind]}" for kind, some in rows.items() if len(set(some)) < len(some)
    ]
    if not repeated:
        return ""
    return f"Some gaps are drawn twice or more, so that intervals are too narrow: {', '.join(repeated)} are distinct."


def _room(tokenizer: Tokenizer, seq_len: int, inputs_eos: bool) -> Callable[[Gap], bool]:
    """Return what tells whether a row fits with any mode token and the longest fill."""
    longest_answer = MAX_SPAN_TOKENS + 2
    return lambda row: max(_count_tokens(tokenizer, row, m, inputs_eos, longest_answer) for m in MODES) <= seq_len


def _count_tokens(tokenizer: Tokenizer, row: Gap, mode: Mode, inputs_eos: bool, longest_answer: int = 0) -> int:
    """Count BOS, prompt and answer of a row."""
    n_target = sum(len(tokenizer.encode(span)) + 1 for span in row.spans) + 1
    return 1 + len(prompt_ids(tokenizer, row.parts, mode, inputs_eos)) + max(n_target, longest_answer)


@dataclass
class GapBits:
    """Cost of gaps row by row: with both sides in view, from the left alone, and with the text after another gap."""

    infill: scores.Bits
    infill_mode: Mode
    """Mode token with which `infill` costs the fewest bits."""
    left_only: scores.Bits
    """The missing spans as continuations of the text before them."""
    left_only_format: str
    """Mode token and attention with which `left_only` costs the fewest bits."""
    shuffled: scores.Bits
    """With the text after another gap."""
    shuffled_rows: np.ndarray
    """Indices of the gaps in `shuffled`: those that fit the model's rows."""

    def estimates(self) -> dict[str, Estimate]:
        """Return each metric with its interval."""
        infill = self.infill.select(self.shuffled_rows)
        return {
            "infill_bits_per_byte": ratio(*self.infill),
            "left_only_bits_per_byte": ratio(*self.left_only),
            "infill_gain": scores.infill_gain(self.left_only, self.infill),
            "infill_gain_shuffled": scores.infill_gain(self.left_only.select(self.shuffled_rows), self.shuffled),
            "suffix_use": ratio(self.shuffled.bits - infill.bits, infill.n_bytes),
        }


def measure_gaps(
    model: Decoder,
    tokenizer: Tokenizer,
    rows: Sequence[Gap],
    *,
    seq_len: int,
    inputs_eos: bool = False,
    attention: Attention = "prefix",
) -> GapBits:
    """Score gaps with the mode token, and the format of left-only continuation, that suit the model best.

    Args:
        model: the model.
        tokenizer: of the model.
        rows: gaps that fit rows of `seq_len`, as `cut_gaps` makes them.
        seq_len: longest prompt with its answer, in tokens; no more than the model's rows.
        inputs_eos: whether training ended inputs with EOS (`CheckpointInfo.inputs_eos`).
        attention: mask of prompts with gaps, as the model was trained.

    Raises:
        ValueError: fewer than two distinct gaps, or none fits the model's rows with the text after another gap.
    """
    shuffled = gaps.shuffle_suffixes(rows)

    def score(some: Sequence[Gap], mode: Mode) -> scores.Bits:
        return scores.score_spans(model, tokenizer, some, mode, inputs_eos, attention).bits

    infills = {mode: score(rows, mode) for mode in MODES}
    mode: Mode = min(MODES, key=lambda m: infills[m].bits.sum())
    left_only = {
        f"{m}, {mask}": scores.score_left_only(model, tokenizer, rows, m, mask) for m, mask in _LEFT_ONLY_FORMATS
    }
    left_only_format = min(left_only, key=lambda f: left_only[f].bits.sum())
    fitting = [i for i, row in enumerate(shuffled) if _count_tokens(tokenizer, row, mode, inputs_eos) <= seq_len]
    if not fitting:
        raise ValueError(f"no gap fits rows of {seq_len} tokens with the text after another gap: give longer text.")
    return GapBits(
        infill=infills[mode],
        infill_mode=mode,
        left_only=left_only[left_only_format],
        left_only_format=left_only_format,
        shuffled=score([shuffled[i] for i in fitting], mode),
        shuffled_rows=np.array(fitting),
    )


@dataclass
class Measurement(GapBits):
    """Measurements of one model row by row, so that models can be compared in pairs; `GapBits` of single lines."""

    causal: scores.Bits
    """Whole texts from left to right."""
    multi: scores.Bits
    """Three-span gaps."""
    free: scores.Fills
    """Fills without the grammar."""
    filled: scores.Fills
    """Fills under the grammar."""
    exact: np.ndarray
    """Whether each fill is the missing line."""
    kinds: dict[str, GapBits]
    """Further kinds of gaps, by name."""

    def prediction(self, i: int) -> str:
        """Return the first line that was decoded for gap i."""
        return self.filled.spans[i][0].split("\n")[0].strip()

    def estimates(self) -> dict[str, Estimate]:
        """Return each metric with its interval."""
        return {
            "causal_bits_per_byte": ratio(*self.causal),
            **super().estimates(),
            "multi_span_bits_per_byte": ratio(*self.multi),
            **{
                f"{kind}_{name.removeprefix('infill_')}": estimate
                for kind, bits in self.kinds.items()
                for name, estimate in bits.estimates().items()
            },
            "format_ok": mean(self.free.format_ok),
            "line_exact_match": mean(self.exact),
        }


def compare(ours: Measurement, control: Measurement) -> dict[str, Estimate]:
    """Estimate paired differences in bits per byte, ours minus control, on the same rows; below 0, ours is better.

    Both have the same `kinds`.

    Raises:
        ValueError: they are of different rows.
    """
    pairs = {
        "infill_bits_per_byte": (ours.infill, control.infill),
        "multi_span_bits_per_byte": (ours.multi, control.multi),
        **{f"{kind}_bits_per_byte": (ours.kinds[kind].infill, control.kinds[kind].infill) for kind in ours.kinds},
        "causal_bits_per_byte": (ours.causal, control.causal),
    }
    for name, (a, b) in pairs.items():
        if not np.array_equal(a.n_bytes, b.n_bytes):
            raise ValueError(
                f"{name}: measured on {_describe_lengths(a)} and on {_describe_lengths(b)}, expected the same rows: "
                "cut them once, with one tokenizer and seq_len, and measure both models on them."
            )
    return {name: ratio(a.bits - b.bits, a.n_bytes) for name, (a, b) in pairs.items()}


def _describe_lengths(bits: scores.Bits) -> str:
    first = ", ".join(f"{n:.0f}" for n in bits.n_bytes[:3])
    return f"{len(bits.n_bytes)} rows of {first}{', ...' if len(bits.n_bytes) > 3 else ''} bytes"


def measure(
    model: Decoder,
    tokenizer: Tokenizer,
    documents: Sequence[Document],
    lines: Sequence[Gap],
    words: Sequence[Gap],
    *,
    seq_len: int,
    n_decoded: int,
    inputs_eos: bool = False,
    kinds: Mapping[str, Sequence[Gap]] = MappingProxyType({}),
) -> Measurement:
    """Measure a model with the mode token, and the format of left-only continuation, that suit it best.

    Args:
        model: the model.
        tokenizer: of the model.
        documents: whole texts, of which as many are scored as there are `lines`.
        lines: single-line gaps from `cut_gaps`.
        words: three-span gaps from `cut_gaps`.
        seq_len: longest prompt with its answer, and longest text, in tokens; no more than the model's rows.
        n_decoded: number of `lines` that are also decoded.
        inputs_eos: whether training ended inputs with EOS (`CheckpointInfo.inputs_eos`).
        kinds: further gaps by name, which are not decoded. Each name begins metrics of its own; "multi_span" measures
            more of `words`.

    Raises:
        ValueError: see `measure_gaps`.
    """
    texts = list(gaps.take_excerpts(documents, len(lines), lambda x: len(tokenizer.encode(x)) <= seq_len))
    score = partial(measure_gaps, model, tokenizer, seq_len=seq_len, inputs_eos=inputs_eos)
    found, of_kinds = score(lines), {kind: score(rows) for kind, rows in kinds.items()}
    mode = found.infill_mode
    decoded = lines[:n_decoded]
    decode = partial(scores.decode_rows, model, tokenizer, decoded, mode, inputs_eos=inputs_eos)
    filled = decode(max_new_tokens=MAX_SPAN_TOKENS)
    return Measurement(
        **vars(found),
        causal=scores.score_texts(model, tokenizer, texts),
        multi=of_kinds["multi_span"].infill
        if "multi_span" in of_kinds
        else scores.score_spans(model, tokenizer, words, mode, inputs_eos).bits,
        free=decode(max_new_tokens=MAX_SPAN_TOKENS, constrained=False),
        filled=filled,
        exact=scores.match_lines(filled, decoded),
        kinds=of_kinds,
    )
