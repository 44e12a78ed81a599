"""`upalm scaling`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from upalm.cli import options
from upalm.terminal import console


@dataclass(frozen=True)
class Scaling:
    """Compute how much training UL2R saves, from evaluations.

    Give the results.json that `upalm eval --suite` wrote of every checkpoint along a causal run, of UL2R continuations
    of some, and of causal continuations of the same (the control).
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[RESULTS ...]")] = ()
    """results.json files, or folders to search for them."""
    paper: bool = False
    """Analyse the paper's own Table 8 instead."""
    out: options.Out = Path("runs/scaling")
    """Folder for scaling.json, scaling.png and report.html."""

    def __call__(self) -> None:
        if self.paper == bool(self.runs):
            raise ValueError("give results.json files or folders that hold them, or --paper.")
        from upalm.evals import savings_report  # imports matplotlib
        from upalm.evals.savings import table_8

        analyses = {"score": table_8()} if self.paper else savings_report.read_results(self.runs)
        output = console()
        for table in savings_report.write(analyses, self.out):
            output.print(table)
        output.print(f"{self.out / 'scaling.png'}, and with the method {self.out / 'report.html'}")
