"""Table, figure and report of the scaling analysis."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np
from rich.table import Table

from upalm.evals import report
from upalm.evals.savings import Point, Saving, common_tasks, measures_of, points_of, savings

_METHOD = """
<p>The causal curve is the score against log FLOPs (6ND), made monotone. The savings rate of a continuation is the FLOPs
at which that curve reaches its score over its own FLOPs, those of its start included. Where the curve never gets there,
"over" gives the lower bound that its last checkpoint allows. Intervals: 95%, tasks and seeds drawn again 1000 times.
<code>control</code> is the same extra compute spent on more of the causal run's objective.</p>
"""


def read_results(paths: Sequence[Path]) -> dict[str, list[Point]]:
    """Points of each measure from results.json files, or from folders that hold some.

    Raises:
        ValueError: no file, or one that `upalm eval --suite` did not write.
    """
    files = [file for path in paths for file in (sorted(path.rglob("results.json")) if path.is_dir() else [path])]
    if missing := [str(path) for path in files if not path.is_file()]:
        raise ValueError(f"no file {missing[0]}.")
    if not files:
        raise ValueError(f"no results.json in {', '.join(map(str, paths))}: `upalm eval --suite` writes them.")
    found = []
    for file in files:
        try:
            found.append(json.loads(file.read_text(encoding="utf-8")))
        except ValueError as e:
            raise ValueError(f"{file} is not JSON ({e}).") from e
        if not {"suite", "compute", "checkpoint", "tasks"} <= found[-1].keys():
            raise ValueError(f"{file} is not a result of `upalm eval --suite`.")
    analyses = {measure: points_of(found, measure) for measure in measures_of(found)}
    lower = {m for m in analyses if m != "score" and found[0]["measures"][m]["lower_is_better"]}
    return {f"minus {m}" if m in lower else m: points for m, points in analyses.items()}


def write(analyses: Mapping[str, Sequence[Point]], folder: Path) -> list[Table]:
    """Write scaling.json, scaling.png and report.html to the folder; return a table per measure."""
    rates = {measure: savings(points) for measure, points in analyses.items()}
    folder.mkdir(parents=True, exist_ok=True)
    contents = {measure: [saving._asdict() for saving in some] for measure, some in rates.items()}
    (folder / "scaling.json").write_text(json.dumps(contents, indent=1) + "\n", encoding="utf-8")
    figure = folder / "scaling.png"
    report.save_scaling(figure, {measure: drawn(points) for measure, points in analyses.items()})
    sections = [("Method", _METHOD), *((m.replace("_", " "), _html(some)) for m, some in rates.items())]
    report.save_html(folder / "report.html", "Compute that UL2R saves", sections, [figure])
    return [_table(measure, some) for measure, some in rates.items()]


def drawn(points: Sequence[Point]) -> list[report.Drawn]:
    """What the plot shows: seeds as one point with their spread."""
    tasks = common_tasks(points)
    groups: dict[tuple[int, str, float, float], list[float]] = {}
    for p in points:
        score = float(np.mean([p.scores[task] for task in tasks]))
        groups.setdefault((p.n_params, p.family, p.start_flops, p.flops), []).append(score)
    means = {key: float(np.mean(scores)) for key, scores in groups.items()}
    starts = {(n, start): mean for (n, family, start, _), mean in means.items() if family == "causal"}
    return [
        report.Drawn(
            *(_size(n), family, (start, starts.get((n, start), means[n, family, start, flops]))),
            (flops, means[n, family, start, flops]),
            (max(scores) - min(scores)) / 2,
        )
        for (n, family, start, flops), scores in groups.items()
    ]


def _size(n_params: int) -> str:
    return f"{n_params / 1e9:.0f}B" if n_params > 1e9 else f"{n_params / 1e6:.2g}M"


_COLUMNS = (
    "size",
    "family",
    "start 6ND",
    "6ND",
    "with attention",
    "seeds",
    "start score",
    "score",
    "savings rate [95%]",
)


def _rows(found: Sequence[Saving]) -> list[tuple[str, ...]]:
    return [
        (
            *(_size(s.n_params), s.family, f"{s.start_flops:.4g}", f"{s.flops:.4g}"),
            *(f"{s.flops_with_attention:.4g}", str(s.n_seeds)),
            *(f"{s.start_score:.4g}", f"{s.score:.4g}", str(s)),
        )
        for s in found
    ]


def _html(found: Sequence[Saving]) -> str:
    head = "".join(f"<th>{name}</th>" for name in _COLUMNS)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in _rows(found))
    return f"<table><tr>{head}</tr>{body}</table>"


def _table(measure: str, some: Sequence[Saving]) -> Table:
    table = Table(title=measure.replace("_", " "))
    for name in _COLUMNS:
        table.add_column(name, justify="left" if name in ("size", "family") else "right")
    for row in _rows(some):
        table.add_row(*row)
    return table
