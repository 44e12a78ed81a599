"""Table, figure and report of the scaling analysis."""

import html
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from upalm.evals import report, text_table
from upalm.evals.benchmark_files import parse_json
from upalm.evals.report import SavingsPoint
from upalm.evals.savings import (
    Difference,
    Point,
    Saving,
    build_points,
    compare_continuations,
    estimate_savings,
    find_common_tasks,
    list_measures,
)
from upalm.files import write_atomically

_METHOD = """
<p>The causal curve is the score against log FLOPs (6ND), made monotone. The savings rate of a continuation is the FLOPs
at which that curve reaches its score, over its own FLOPs, those of its start included. Where the curve never gets
there, "over" gives the lower bound that its last checkpoint allows. Intervals: 95%, tasks and seeds resampled 1000
times; unknown for one task of one seed. <code>control</code> is the same extra compute spent on more of the causal
run's objective.</p>
"""
_PAIRS_HEADER = ("size", "mixture", "from FLOPs", "to FLOPs", "pairs", "difference (standard error)")


class Analysis(NamedTuple):
    """Savings rates, and the files that were written."""

    savings: dict[str, list[Saving]]
    """By measure."""
    differences: dict[str, list[Difference]]
    """UL2R minus control, by measure; none where no start and seed has both."""
    figure: Path
    report: Path

    def format(self) -> str:
        """Return the tables as text, within 80 columns."""
        header = ("size", "mixture", "from FLOPs", "to FLOPs", "score", "savings rate [95%]")
        tables = []
        for measure, savings in self.savings.items():
            numbers = [(f"{s.start_flops:.3g}", f"{s.flops:.3g}", f"{s.score:.4g}", str(s)) for s in savings]
            rows = [(*_name(s), *row) for s, row in zip(savings, numbers, strict=True)]
            tables.append(text_table.format_table(header, rows, title=measure.replace("_", " "), n_left=2))
        for measure, differences in self.differences.items():
            if differences:
                rows = [_format_difference(d) for d in differences]
                title = f"{measure.replace('_', ' ')}: UL2R minus control, in pairs"
                tables.append(text_table.format_table(_PAIRS_HEADER, rows, title=title, n_left=2))
        return "\n\n".join([*tables, f"figure: {self.figure}\nreport: {self.report}"])


def analyse(points: Mapping[str, Sequence[Point]], out: Path) -> Analysis:
    """Estimate savings rates, and write scaling.json, differences.json, scaling.png and report.html.

    Args:
        points: evaluated checkpoints by measure, from `read_points` or `savings.build_paper_points`.
        out: folder of the files.

    Raises:
        ValueError: see `estimate_savings`.
    """
    savings = {measure: estimate_savings(group) for measure, group in points.items()}
    differences = {measure: compare_continuations(group) for measure, group in points.items()}
    out.mkdir(parents=True, exist_ok=True)
    for name, by_measure in (("scaling", savings), ("differences", differences)):
        contents = {measure: [_to_json(x) for x in some] for measure, some in by_measure.items()}
        write_atomically(out / f"{name}.json", json.dumps(contents, indent=1, allow_nan=False) + "\n")
    figure = report.draw_savings({measure: place_points(group) for measure, group in points.items()})
    report.save_figure(out / "scaling.png", figure)
    caption = "Score against training compute; a dotted segment leads from each checkpoint to its continuation."
    sections = [("Savings", report.format_figure(figure, caption)), ("Method", _METHOD)]
    for measure, some in savings.items():
        sections.append((measure.replace("_", " "), _format_html(some) + _format_html_pairs(differences[measure])))
    report.save_html(out / "report.html", "Compute that UL2R saves", sections)
    return Analysis(savings, differences, out / "scaling.png", out / "report.html")


def _to_json(result: Saving | Difference) -> dict[str, Any]:
    """Return plain values. JSON has no infinity: a rate beyond the causal run is null, with `bound` below it.

    It has no NaN either: an unknown interval or standard error is null, too.
    """
    values = result._asdict().items()
    return {k: None if isinstance(x, float) and not math.isfinite(x) else x for k, x in values}


def read_points(paths: Sequence[Path]) -> dict[str, list[Point]]:
    """Read the results of evaluated checkpoints as points by measure.

    Args:
        paths: results.json files, or folders that are searched for them.

    Raises:
        ValueError: a path without results, or results that do not fit together (see `build_points`).
    """
    files = [file for path in paths for file in (sorted(path.rglob("results.json")) if path.is_dir() else [path])]
    if missing := [str(path) for path in files if not path.is_file()]:
        raise ValueError(f"no file {missing[0]}.")
    if not files:
        raise ValueError(f"no results.json in {', '.join(map(str, paths))}: `upalm eval --suite` writes them.")
    results = []
    for file in files:
        result = parse_json(file.read_bytes(), str(file))
        if not isinstance(result, dict) or not {"suite", "compute", "checkpoint", "tasks"} <= result.keys():
            raise ValueError(f"{file} is not a result of `upalm eval --suite`.")
        if not all(isinstance(result[name], dict) for name in ("compute", "tasks")):
            raise ValueError(f"{file} is damaged or of another version: evaluate the checkpoint again.")
        results.append(result)
    points = {measure: build_points(results, measure) for measure in list_measures(results)}
    lower = {m for m in points if m != "score" and results[0]["measures"][m]["lower_is_better"]}
    return {f"minus {m}" if m in lower else m: group for m, group in points.items()}


def place_points(points: Sequence[Point]) -> list[SavingsPoint]:
    """Average the seeds of each continuation into one point of the plot, with their spread."""
    tasks = find_common_tasks(points)
    groups: dict[tuple[int, str, str, float, float], list[float]] = {}
    for p in points:
        score = float(np.mean([p.scores[task] for task in tasks]))
        groups.setdefault((p.n_params, p.family, p.mixture, p.start_flops, p.flops), []).append(score)
    means = {key: float(np.mean(scores)) for key, scores in groups.items()}
    starts = {(n, start): mean for (n, family, _, start, _), mean in means.items() if family == "causal"}
    return [
        SavingsPoint(
            n_params=key[0],
            family=key[1],
            start=(key[3], starts.get((key[0], key[3]), mean)),
            position=(key[4], mean),
            spread=(max(groups[key]) - min(groups[key])) / 2,
        )
        for key, mean in means.items()
    ]


def _name(saving: Saving) -> tuple[str, str]:
    return report.format_size(saving.n_params), "control" if saving.family == "control" else saving.mixture


def _format_difference(difference: Difference) -> tuple[str, ...]:
    ends = ["all" if flops is None else f"{flops:.3g}" for flops in (difference.start_flops, difference.flops)]
    se = "unknown" if math.isnan(difference.se) else f"{difference.se:.4f}"
    names = report.format_size(difference.n_params), difference.mixture
    return (*names, *ends, str(difference.n_pairs), f"{difference.mean:+.4f} ({se})")


def _format_html_pairs(differences: Sequence[Difference]) -> str:
    if not differences:
        return ""
    return report.format_table(_PAIRS_HEADER, [list(map(html.escape, _format_difference(d))) for d in differences])


def _format_html(savings: Sequence[Saving]) -> str:
    header = ("size", "mixture", "start 6ND", "6ND", "with attention", "seeds", "start score", "score", "savings [95%]")
    rows = []
    for s in savings:
        flops = [f"{x:.4g}" for x in (s.start_flops, s.flops, s.flops_with_attention)]
        start_score = f"{s.start_score:.4g}" if math.isfinite(s.start_score) else "-"
        names = map(html.escape, _name(s))
        rows.append([*names, *flops, str(s.n_seeds), start_score, f"{s.score:.4g}", str(s)])
    return report.format_table(header, rows)
