"""HumanEval infilling (Bavarian et al. 2022, arXiv:2207.14255): gaps in Python functions, by exact match.

The files are those of github.com/openai/human-eval-infilling. Exact match executes nothing, and is a lower bound on
pass@1.
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
from upalm.evals.infilling.scores import fill_and_score
from upalm.inference.config import Mode
from upalm.model.palm import Decoder
from upalm.spelling import suggest

FILES = {
    "single-line": "HumanEval-SingleLineInfilling.jsonl.gz",
    "multi-line": "HumanEval-MultiLineInfilling.jsonl.gz",
    "random-span": "HumanEval-RandomSpanInfilling.jsonl.gz",
}
_EXACT = {
    "single-line": {"em_line": text_metrics.match_line, "em_strip": text_metrics.match_stripped_line},
    "multi-line": {"em_lines": text_metrics.match_lines},
    "random-span": {"em": text_metrics.match_text},
}


class Benchmark(NamedTuple):
    """One of the three benchmarks."""

    kind: str
    rows: list[Gap]
    n_blank: int
    """Rows left out because the missing text is blank."""


def load(folder: Path, kind: str) -> Benchmark:
    """Read a benchmark.

    Raises:
        ValueError: an unknown kind, no such file, or a file that is not of this benchmark.
    """
    if kind not in FILES:
        raise ValueError(f"no kind {kind!r} of HumanEval infilling: {suggest(kind, FILES)}")
    path = folder / FILES[kind]
    if not path.is_file():
        raise ValueError(f"no {path}: get it from github.com/openai/human-eval-infilling/tree/master/data.")
    rows = [Gap((row.text("prompt"), row.text("suffix")), (row.text("canonical_solution"),)) for row in read(path)]
    kept = [row for row in rows if row.spans[0].strip()]
    return Benchmark(kind, kept, len(rows) - len(kept))


def match_estimates(benchmark: Benchmark, predictions: Sequence[str]) -> dict[str, Estimate]:
    """Estimate exact match and edit similarity of predictions, one per row.

    Rows without a suffix are plain continuation, and also reported apart.
    """
    gold = [row.spans[0] for row in benchmark.rows]
    if benchmark.kind == "single-line":  # the missing text ends with a line break, and fills before it
        predictions, gold = ([text.split("\n")[0] for text in texts] for texts in (predictions, gold))
    has_suffix = np.array([bool(row.parts[1]) for row in benchmark.rows])
    metrics = {**_EXACT[benchmark.kind], "edit_sim": text_metrics.edit_similarity}
    estimates = {}
    for name, metric in metrics.items():
        values = np.array([metric(p, g) for p, g in zip(predictions, gold, strict=True)], float)
        estimates[name] = mean(values)
        for part, mask in (("with_suffix", has_suffix), ("without_suffix", ~has_suffix)):
            if mask.any() and not mask.all():
                estimates[f"{name}_{part}"] = mean(values[mask])
    return estimates


class Result(NamedTuple):
    """Scores of a model on one benchmark."""

    estimates: dict[str, Estimate]
    """Estimates of `match_estimates` and `SpanScores.estimates`, and `format_ok` without the grammar."""
    predictions: list[str]
    """Fills of the rows that fit."""
    n_blank: int
    n_too_long: int
    """Rows longer than the model's, left out of every estimate."""


def evaluate(
    model: Decoder, tokenizer: Tokenizer, benchmark: Benchmark, *, mode: Mode = "nlg", inputs_eos: bool = False
) -> Result:
    """Fill the gaps greedily under the grammar, and compare with the missing text.

    Raises:
        RowsTooShort: no row fits the model.
    """
    stop = ("\n",) if benchmark.kind == "single-line" else ()
    rows, spans, scored = fill_and_score(model, tokenizer, benchmark.rows, mode, stop=stop, inputs_eos=inputs_eos)
    predictions = [span for span, *_ in spans]
    estimates = match_estimates(benchmark._replace(rows=rows), predictions) | scored
    return Result(estimates, predictions, benchmark.n_blank, len(benchmark.rows) - len(rows))
