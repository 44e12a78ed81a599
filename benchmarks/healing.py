"""Measure what healing does to fills of gaps, inside words and at the borders of lines.

    python benchmarks/healing.py --data bench/

Gaps of HumanEval's random-span and single-line benchmarks, and gaps of prose (LAMBADA) that begin and end inside a
word, are filled greedily with and without healing. Printed are means, and their paired differences with 95% intervals
(bootstrap over rows). `start`: the share of the missing text that the fill begins with;
`closed`: the model ended the span before its limit.
"""

import json
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

import upalm
from upalm.evals import text_metrics
from upalm.evals.benchmark_files import read
from upalm.evals.bootstrap import mean
from upalm.evals.infilling import humaneval
from upalm.evals.infilling.gaps import Gap
from upalm.evals.infilling.scores import drop_too_long, limits_of
from upalm.inference.config import Mode
from upalm.inference.generation import infill_batch

PROSE = "nlp/lambada_openai.jsonl"


@dataclass(frozen=True)
class Case:
    checkpoint: Path = upalm.UPALM_TINY
    """Folder of a run or of weights that was trained on gaps."""
    data: Path = Path("bench")
    """Folder of the benchmark files: `humaneval_infilling/` and `nlp/lambada_openai.jsonl`."""
    n_rows: int = 200
    """Rows of each kind of gap."""
    mode: Mode = "nlg"
    """Mode token of the prompts."""
    out: Path | None = None
    """JSON file for the figures."""


def code_gaps(folder: Path, kind: str) -> list[Gap]:
    rows = humaneval.load(folder / "humaneval_infilling", kind).rows
    return random.Random(0).sample(rows, len(rows))


def prose_gaps(folder: Path) -> list[Gap]:
    """Spans of 1 to 3 words, less the beginning of the first and the end of the last, with 20 words on each side."""
    rows = []
    for i, line in enumerate(read(folder / PROSE)):
        text, rng = line.text("text"), random.Random(i)
        words = text_metrics.word_spans(text)
        first = rng.randrange(20, max(len(words) - 23, 21))
        if first + 23 > len(words):
            continue
        last = first + rng.randrange(3)
        begin, end = (rng.randrange(a + 1, b) if b > a + 1 else a for a, b in (words[first], words[last]))
        if begin < end and text[begin - 1].isalpha() and text[begin].isalpha() and text[end - 1 : end + 1].isalpha():
            window = words[first - 20][0], words[last + 20][1]
            rows.append(Gap((text[window[0] : begin], text[end : window[1]]), (text[begin:end],)))
    return rows


def measure(model: upalm.LanguageModel, rows: Sequence[Gap], mode: Mode, heal: bool) -> dict[str, np.ndarray]:
    """Measures of the fills, row by row."""
    config = upalm.GenerationConfig(mode=mode, heal=heal, batch_size=32)
    limits = [limits_of(model.tokenizer, row) for row in rows]
    fills = infill_batch(
        model.decoding,
        model.tokenizer,
        [row.parts for row in rows],
        config,
        inputs_eos=model.info.inputs_eos,
        limits=limits,
    )
    pairs = [(fill.spans[0], row.spans[0]) for fill, row in zip(fills, rows, strict=True)]
    return {
        "exact": np.array([text_metrics.match_text(*pair) for pair in pairs], float),
        "start": np.array([len(os.path.commonprefix(pair)) / len(pair[1]) for pair in pairs]),
        "edit_sim": np.array([text_metrics.edit_similarity(*pair) for pair in pairs]),
        "format_ok": np.array([fill.format_ok for fill in fills], float),
        "closed": np.array([fill.finish_reasons == ["closed"] for fill in fills], float),
    }


def main(case: Case) -> None:
    kinds: dict[str, Callable[[], list[Gap]]] = {
        "random spans": lambda: code_gaps(case.data, "random-span"),
        "inside words of prose": lambda: prose_gaps(case.data),
        "whole lines": lambda: code_gaps(case.data, "single-line"),
    }
    model, figures = upalm.load(case.checkpoint), {}
    for kind, cut in kinds.items():
        try:
            rows = cut()
        except (ValueError, OSError) as e:
            print(f"{kind}: left out: {e}")
            continue
        rows = drop_too_long(model.model, model.tokenizer, rows, case.mode, model.info.inputs_eos)[: case.n_rows]
        plain, healed = (measure(model, rows, case.mode, heal) for heal in (False, True))
        print(f"{kind}, {len(rows)} rows")
        figures[kind] = {}
        for name in plain:
            estimates = {"plain": mean(plain[name]), "healed": mean(healed[name])}
            estimates["difference"] = mean(healed[name] - plain[name])
            figures[kind][name] = {key: estimate._asdict() for key, estimate in estimates.items()}
            print(f"  {name:10}" + "".join(f"  {key} {estimate}" for key, estimate in estimates.items()), flush=True)
    if case.out is not None:
        case.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Case, description=__doc__))
