"""Infilling of prose: spans of a few words, cut at random, written to a file once so that every model sees the same."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from upalm.data.tokenizer import Tokenizer
from upalm.evals import text_metrics
from upalm.evals.benchmark_files import read
from upalm.evals.bootstrap import Estimate, mean
from upalm.evals.infilling.gaps import Gap
from upalm.evals.infilling.scores import decode_rows, drop_too_long, score_spans
from upalm.inference.prompts import Mode
from upalm.model.palm import Decoder

_LENGTHS = {"1": range(1, 2), "2_5": range(2, 6), "6_10": range(6, 11)}


_ALIKE = {"em": text_metrics.exact_words, "f1": text_metrics.f1, "rougeL": text_metrics.rouge_l}


@dataclass(frozen=True)
class Cut:
    """How spans are cut: U-PaLM has no such benchmark, these are ours."""

    n_spans: int = 1
    max_words: int = 10
    """Words of a span: 1 to this, each as likely."""
    margin: int = 5
    """Words that stay before the first span and after the last."""
    apart: int = 3
    """Words that stay between two spans."""


def cut_rows(name: str, texts: Sequence[str], cut: Cut = Cut()) -> tuple[list[Gap], int]:
    """One row a text, and how many texts were too short. Row i depends on `name`, i and its text alone."""
    rows = []
    for i, text in enumerate(texts):
        rng, words = random.Random(f"{name}:{i}"), text_metrics.words(text)
        sizes = [rng.randint(1, cut.max_words) for _ in range(cut.n_spans)]
        free = len(words) - sum(sizes) - 2 * cut.margin - cut.apart * (cut.n_spans - 1)
        if free < 0:
            continue
        places = sorted(rng.randint(0, free) for _ in sizes)
        edges, at = [0], cut.margin
        for place, before, size in zip(places, [0, *places], sizes, strict=False):
            at += place - before
            edges += [words[at][0], words[at + size - 1][1]]
            at += size + cut.apart
        pieces = [text[a:b] for a, b in zip(edges, [*edges[1:], len(text)], strict=True)]
        rows.append(Gap(tuple(pieces[0::2]), tuple(pieces[1::2])))
    return rows, len(texts) - len(rows)


def save(path: Path, rows: Sequence[Gap]) -> None:
    """Write rows as JSON lines."""
    lines = [json.dumps({"parts": row.parts, "spans": row.spans}, ensure_ascii=False) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def load(path: Path) -> list[Gap]:
    """Read what `save` wrote.

    Raises:
        ValueError: a line that is no row, by number; or there is none.
    """
    rows = []
    for found in read(path):
        row = Gap(found.texts("parts"), found.texts("spans"))
        if len(row.parts) != len(row.spans) + 1:
            raise ValueError(f"{found.where}: {len(row.parts)} parts around {len(row.spans)} spans.")
        rows.append(row)
    return rows


def match_estimates(rows: Sequence[Gap], predictions: Sequence[Sequence[str]]) -> dict[str, Estimate]:
    """Agreement of predicted spans with the true ones, over spans, and `em_all` over rows.

    `em_1`, `em_2_5`, `em_6_10`: spans of so many words. `len_ratio`: predicted over true characters, pooled by span;
    a model that runs on is far above 1.
    """
    pairs = [pair for row, spans in zip(rows, predictions, strict=True) for pair in zip(spans, row.spans, strict=True)]
    found = {name: mean(np.array([alike(p, g) for p, g in pairs], float)) for name, alike in _ALIKE.items()}
    exact = [
        all(text_metrics.exact_words(p, g) for p, g in zip(spans, row.spans, strict=True))
        for row, spans in zip(rows, predictions, strict=True)
    ]
    found["em_all"] = mean(np.array(exact, float))
    found["len_ratio"] = mean(np.array([len(p) / max(len(g), 1) for p, g in pairs]))
    for name, lengths in _LENGTHS.items():
        chosen = [text_metrics.exact_words(p, g) for p, g in pairs if len(g.split()) in lengths]
        if chosen:
            found[f"em_{name}"] = mean(np.array(chosen, float))
    return found


def evaluate(
    model: Decoder, tokenizer: Tokenizer, rows: Sequence[Gap], *, mode: Mode = "nlu", inputs_eos: bool = False
) -> tuple[dict[str, Estimate], int]:
    """`match_estimates` of greedy fills, `scores.Forced` and `format_ok` without the grammar; and how many rows were
    too long for the model, and are in none of these.

    Raises:
        TooShort: no row fits the model.
    """
    fitting = drop_too_long(model, tokenizer, rows, mode, inputs_eos)
    filled = decode_rows(model, tokenizer, fitting, mode, inputs_eos=inputs_eos)
    estimates = (
        match_estimates(fitting, filled.spans) | score_spans(model, tokenizer, fitting, mode, inputs_eos).estimates()
    )
    estimates["format_ok"] = mean(
        decode_rows(model, tokenizer, fitting, mode, constrained=False, inputs_eos=inputs_eos).format_ok
    )
    return estimates, len(rows) - len(fitting)
