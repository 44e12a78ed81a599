"""What a model makes of held-out text: bits a byte left to right and in gaps, and what it decodes there."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from upalm.data.sources import Document
from upalm.data.tokenizer import Tokenizer
from upalm.evals.bootstrap import Estimate, mean, ratio
from upalm.evals.infilling import gaps, scores
from upalm.evals.infilling.gaps import Gap
from upalm.inference.decoding import Attention
from upalm.inference.prompts import Mode, prompt_ids
from upalm.model.palm import Decoder

MODES = ("none", "nlu", "nlg")


_MAX_SPAN = 40


_LEFT_ONLY_FORMS: tuple[tuple[str, Attention], ...] = (("none", "causal"), ("none", "prefix"), ("s2s", "prefix"))


def cut_gaps(
    documents: Sequence[Document], tokenizer: Tokenizer, seq_len: int, n: int, inputs_eos: bool = False
) -> tuple[list[Gap], list[Gap]]:
    """Single-line and three-span gaps that fit a row with any mode token and the most that decoding may add.

    Raises:
        ValueError: the documents are too short.
    """
    most_new = _MAX_SPAN + 2

    def fits(row: Gap) -> bool:
        return max(_n_tokens(tokenizer, row, mode, inputs_eos, most_new) for mode in MODES) <= seq_len

    return gaps.line_rows(documents, n, fits), gaps.word_rows(documents, n, fits)


def _n_tokens(tokenizer: Tokenizer, row: Gap, mode: Mode, inputs_eos: bool, most_new: int = 0) -> int:
    """Of a gap with BOS, prompt and answer."""
    n_target = sum(len(tokenizer.encode(span)) + 1 for span in row.spans) + 1
    return 1 + len(prompt_ids(tokenizer, row.parts, mode, inputs_eos)) + max(n_target, most_new)


@dataclass
class Measurement:
    """What was measured of one model, row by row, so that models can be compared in pairs."""

    causal: scores.Bits
    infill: scores.Bits
    infill_mode: str
    multi: scores.Bits
    left_only: scores.Bits
    left_only_form: str
    shuffled: scores.Bits
    shuffled_rows: np.ndarray
    """Of the gaps, those that also fit with the text after another."""
    free: scores.Decoded
    filled: scores.Decoded
    exact: np.ndarray

    def prediction(self, i: int) -> str:
        """The first line of what was decoded for a gap."""
        return self.filled.spans[i][0].split("\n")[0].strip()

    def estimates(self) -> dict[str, Estimate]:
        """Each metric, with its interval."""
        infill = self.infill.of(self.shuffled_rows)
        return {
            "causal_bits_per_byte": ratio(*self.causal),
            "infill_bits_per_byte": ratio(*self.infill),
            "left_only_bits_per_byte": ratio(*self.left_only),
            "infill_gain": scores.infill_gain(self.left_only, self.infill),
            "infill_gain_shuffled": scores.infill_gain(self.left_only.of(self.shuffled_rows), self.shuffled),
            "suffix_use": ratio(self.shuffled.bits - infill.bits, infill.n_bytes),
            "multi_span_bits_per_byte": ratio(*self.multi),
            "format_ok": mean(self.free.format_ok),
            "line_exact_match": mean(self.exact),
        }


def measure(
    model: Decoder,
    tokenizer: Tokenizer,
    documents: Sequence[Document],
    lines: Sequence[Gap],
    words: Sequence[Gap],
    *,
    n_decoded: int,
    inputs_eos: bool = False,
) -> Measurement:
    """A model at its best: the mode token, and the form of left-only continuation, that suit it most.

    Args:
        model: to measure.
        tokenizer: of the model.
        documents: for whole texts, as many as there are `lines`.
        lines: single-line gaps, from `cut_gaps`.
        words: three-span gaps, likewise.
        n_decoded: of the `lines`, how many are also decoded.
        inputs_eos: whether training ended inputs with EOS (`CheckpointInfo.inputs_eos`).
    """
    excerpts = list(gaps.excerpts(documents, len(lines), lambda x: len(tokenizer.encode(x)) <= model.config.seq_len))
    infills = {mode: scores.score_spans(model, tokenizer, lines, mode, inputs_eos).bits for mode in MODES}
    mode = min(infills, key=lambda m: infills[m].bits.sum())
    left_only = {
        f"{m}, {attention}": scores.left_only_bits(model, tokenizer, lines, m, attention)
        for m, attention in _LEFT_ONLY_FORMS
    }
    form = min(left_only, key=lambda f: left_only[f].bits.sum())
    few = lines[:n_decoded]
    decode = partial(scores.decode_rows, model, tokenizer, few, mode, max_new_tokens=_MAX_SPAN, inputs_eos=inputs_eos)
    shuffled = gaps.shuffled_suffixes(lines)
    fitting = [
        i for i, row in enumerate(shuffled) if _n_tokens(tokenizer, row, mode, inputs_eos) <= model.config.seq_len
    ]
    if not fitting:
        raise ValueError(f"no gap fits rows of {model.config.seq_len} with the text after another: give longer text.")
    return Measurement(
        causal=scores.text_bits(model, tokenizer, excerpts),
        infill=infills[mode],
        infill_mode=mode,
        multi=scores.score_spans(model, tokenizer, words, mode, inputs_eos).bits,
        left_only=left_only[form],
        left_only_form=form,
        shuffled=scores.score_spans(model, tokenizer, [shuffled[i] for i in fitting], mode, inputs_eos).bits,
        shuffled_rows=np.array(fitting),
        free=decode(constrained=False),
        filled=(filled := decode()),
        exact=scores.exact_lines(filled, few),
    )
