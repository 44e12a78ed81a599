"""Infilling of prose: random spans of a few words, the same for every model."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from upalm.data.tokenizer import Tokenizer
from upalm.evals import text_metrics
from upalm.evals.bootstrap import Estimate, mean
from upalm.evals.infilling.gaps import Gap
from upalm.evals.infilling.scores import fill_and_score
from upalm.inference.config import Mode
from upalm.model.palm import Decoder

_WORD_COUNTS = {"1": range(1, 2), "2_5": range(2, 6), "6_10": range(6, 11)}
_METRICS = {"em": text_metrics.match_words, "f1": text_metrics.word_f1, "rougeL": text_metrics.rouge_l}


@dataclass(frozen=True)
class Cut:
    """Numbers and sizes of spans; a benchmark of this package, as U-PaLM has none on prose."""

    n_spans: int = 1
    max_words: int = 10
    """A span has 1 to `max_words` words, uniformly."""
    margin: int = 5
    """Words before the first span and after the last."""
    apart: int = 3
    """Words between two spans."""

    def __post_init__(self):
        if min(self.n_spans, self.max_words) < 1 or min(self.margin, self.apart) < 0:
            raise ValueError(f"{self}: expected at least one span of at least one word, and no negative distance.")


def cut_rows(name: str, texts: Sequence[str], cut: Cut = Cut()) -> tuple[list[Gap], int]:
    """Cut one row per text, and count the texts that are too short. Row i depends on `name`, i and its text alone."""
    rows = []
    for i, text in enumerate(texts):
        rng, words = random.Random(f"{name}:{i}"), text_metrics.word_spans(text)
        sizes = [rng.randint(1, cut.max_words) for _ in range(cut.n_spans)]
        free = len(words) - sum(sizes) - 2 * cut.margin - cut.apart * (cut.n_spans - 1)
        if free < 0:
            continue
        places = sorted(rng.randint(0, free) for _ in sizes)
        edges, word = [0], cut.margin
        for place, before, size in zip(places, [0, *places], sizes, strict=False):
            word += place - before
            edges += [words[word][0], words[word + size - 1][1]]
            word += size + cut.apart
        pieces = [text[a:b] for a, b in zip(edges, [*edges[1:], len(text)], strict=True)]
        rows.append(Gap(tuple(pieces[0::2]), tuple(pieces[1::2])))
    return rows, len(texts) - len(rows)


def match_estimates(rows: Sequence[Gap], predictions: Sequence[Sequence[str]]) -> dict[str, Estimate]:
    """Estimate the agreement of predicted with true spans: over spans, and `em_all` over rows.

    `em_1`, `em_2_5` and `em_6_10` are over spans of so many words. `len_ratio` is predicted over true characters,
    averaged over spans; it is far above 1 if the model does not stop.
    """
    pairs = [pair for row, spans in zip(rows, predictions, strict=True) for pair in zip(spans, row.spans, strict=True)]
    estimates = {name: mean(np.array([f(p, g) for p, g in pairs], float)) for name, f in _METRICS.items()}
    exact = [all(map(text_metrics.match_words, spans, row.spans)) for row, spans in zip(rows, predictions, strict=True)]
    estimates["em_all"] = mean(np.array(exact, float))
    estimates["len_ratio"] = mean(np.array([len(p) / max(len(g), 1) for p, g in pairs]))
    for name, lengths in _WORD_COUNTS.items():
        exact_here = [text_metrics.match_words(p, g) for p, g in pairs if len(g.split()) in lengths]
        if exact_here:
            estimates[f"em_{name}"] = mean(np.array(exact_here, float))
    return estimates


def evaluate(
    model: Decoder, tokenizer: Tokenizer, rows: Sequence[Gap], *, mode: Mode = "nlu", inputs_eos: bool = False
) -> tuple[dict[str, Estimate], int]:
    """Evaluate a model: `match_estimates` of greedy fills, `SpanScores.estimates`, and `format_ok` without grammar.

    Returns the estimates, and the number of rows that are too long for the model and in no estimate.

    Raises:
        RowsTooShort: no row fits the model.
    """
    fitting, spans, estimates = fill_and_score(model, tokenizer, rows, mode, inputs_eos=inputs_eos)
    return match_estimates(fitting, spans) | estimates, len(rows) - len(fitting)
