"""`upalm scaling`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from upalm.cli import options


@dataclass(frozen=True)
class Scaling:
    """Compute how much training UL2R saves, from evaluations.

    Give the results.json files that `upalm eval --suite` wrote for the checkpoints of a causal run, for UL2R
    continuations of some of them, and for causal continuations of the same (the control).
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
        from upalm.evals.savings import build_paper_points
        from upalm.evals.savings_report import analyse, read_points  # imports matplotlib

        points = {"score": build_paper_points()} if self.paper else read_points(self.runs)
        print(analyse(points, self.out).format())
