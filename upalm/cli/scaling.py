"""`upalm scaling`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.table import Table

from upalm.evals import report
from upalm.evals.savings import Saving, savings, table_8
from upalm.evals.savings_report import _COLUMNS, _METHOD, _html, _read, _rows, drawn
from upalm.training import progress


@dataclass(frozen=True)
class Scaling:
    """Compute how much training UL2R saves, from evaluations.

    Of every checkpoint along a causal run, of UL2R continuations of some, and of causal continuations of the same (the
    control), give the results.json that `upalm eval --suite` wrote.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[RESULTS ...]")] = ()
    """results.json files, or folders to search for them."""
    paper: bool = False
    """Analyse the paper's own Table 8 instead."""
    out: Path = Path("runs/scaling")
    """Folder for scaling.json, scaling.png and report.html."""

    def __call__(self) -> None:
        if self.paper == bool(self.runs):
            raise ValueError("give results.json files or folders that hold them, or --paper.")
        analyses = {"score": table_8()} if self.paper else _read(self.runs)
        found = {measure: savings(points) for measure, points in analyses.items()}
        self.out.mkdir(parents=True, exist_ok=True)
        contents = {measure: [s._asdict() for s in some] for measure, some in found.items()}
        (self.out / "scaling.json").write_text(json.dumps(contents, indent=1) + "\n")
        figure = self.out / "scaling.png"
        report.save_scaling(figure, {measure: drawn(points) for measure, points in analyses.items()})
        sections = [("Method", _METHOD), *((m.replace("_", " "), _html(some)) for m, some in found.items())]
        report.save_html(self.out / "report.html", "Compute that UL2R saves", sections, [figure])
        console = progress.console()
        for measure, some in found.items():
            console.print(_table(measure, some))
        console.print(f"{figure}, and with the method {self.out / 'report.html'}")


def _table(measure: str, found: Sequence[Saving]) -> Table:
    table = Table(title=measure.replace("_", " "))
    for name in _COLUMNS:
        table.add_column(name, justify="left" if name in ("size", "family") else "right")
    for row in _rows(found):
        table.add_row(*row)
    return table
