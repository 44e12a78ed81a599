"""HumanEval infilling (Bavarian et al. 2022, arXiv:2207.14255): a gap in a Python function, by exact match.

The files are those of github.com/openai/human-eval-infilling. Exact match needs no execution, and is a lower bound
on pass@1.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from upalm.data.tokenizer import Tokenizer
from upalm.evals import text_metrics
from upalm.evals.benchmark_files import read
from upalm.evals.bootstrap import Estimate, mean
from upalm.evals.infilling.gaps import Gap
from upalm.evals.infilling.scores import decode_rows, drop_too_long, score_spans
from upalm.inference.prompts import Mode
from upalm.model.palm import Decoder

FILES = {
    "single-line": "HumanEval-SingleLineInfilling.jsonl.gz",
    "multi-line": "HumanEval-MultiLineInfilling.jsonl.gz",
    "random-span": "HumanEval-RandomSpanInfilling.jsonl.gz",
}


_EXACT = {
    "single-line": {"em_line": text_metrics.exact_line, "em_strip": text_metrics.exact_stripped_line},
    "multi-line": {"em_lines": text_metrics.exact_lines},
    "random-span": {"em": text_metrics.exact_text},
}


class Benchmark(NamedTuple):
    """One of the three benchmarks."""

    kind: str
    rows: list[Gap]
    n_blank: int
    """Benchmark left out because there is nothing to fill in."""


def load(folder: Path, kind: str) -> Benchmark:
    """Read a benchmark.

    Raises:
        ValueError: an unknown kind, no such file, or a file that is not of this benchmark.
    """
    if kind not in FILES:
        raise ValueError(f"there is no HumanEval infilling of kind {kind!r}: choose one of {', '.join(FILES)}.")
    path = folder / FILES[kind]
    if not path.is_file():
        raise ValueError(f"no {path}: get it from github.com/openai/human-eval-infilling/tree/master/data.")
    rows = [Gap((row.text("prompt"), row.text("suffix")), (row.text("canonical_solution"),)) for row in read(path)]
    kept = [row for row in rows if row.spans[0].strip()]
    return Benchmark(kind, kept, len(rows) - len(kept))


def match_estimates(benchmark: Benchmark, predictions: Sequence[str]) -> dict[str, Estimate]:
    """Exact match and edit similarity of predictions, one a row; rows without a suffix also apart, as they are
    plain continuation.
    """
    gold = [row.spans[0] for row in benchmark.rows]
    has_suffix = np.array([bool(row.parts[1]) for row in benchmark.rows])
    functions = {**_EXACT[benchmark.kind], "edit_sim": text_metrics.edit_similarity}
    found = {}
    for name, alike in functions.items():
        values = np.array([alike(p, g) for p, g in zip(predictions, gold, strict=True)], float)
        found[name] = mean(values)
        for part, chosen in (("with_suffix", has_suffix), ("without_suffix", ~has_suffix)):
            if chosen.any() and not chosen.all():
                found[f"{name}_{part}"] = mean(values[chosen])
    return found


class Result(NamedTuple):
    """A model's score on one benchmark."""

    estimates: dict[str, Estimate]
    """Of `match_estimates`, of `infilling.Forced`, and `format_ok` without the grammar."""
    predictions: list[str]
    """One a row that fits."""
    n_blank: int
    n_too_long: int
    """Benchmark that the model cannot hold, left out of every estimate."""


def evaluate(
    model: Decoder, tokenizer: Tokenizer, benchmark: Benchmark, *, mode: Mode = "nlg", inputs_eos: bool = False
) -> Result:
    """Fill the gaps greedily under the grammar, with up to twice the missing tokens and 8, and compare.

    Raises:
        TooShort: no row fits the model.
    """
    rows = drop_too_long(model, tokenizer, benchmark.rows, mode, inputs_eos)
    stop = ("\n",) if benchmark.kind == "single-line" else ()
    filled = decode_rows(model, tokenizer, rows, mode, stop=stop, inputs_eos=inputs_eos)
    predictions = [spans[0] for spans in filled.spans]
    estimates = (
        match_estimates(benchmark._replace(rows=rows), predictions)
        | score_spans(model, tokenizer, rows, mode, inputs_eos).estimates()
    )
    estimates["format_ok"] = mean(
        decode_rows(model, tokenizer, rows, mode, constrained=False, inputs_eos=inputs_eos).format_ok
    )
    return Result(estimates, predictions, benchmark.n_blank, len(benchmark.rows) - len(rows))
