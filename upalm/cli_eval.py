"""`upalm eval`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from upalm import text
from upalm.checkpoint import load_model
from upalm.evals.held_out import measure, rows_of


@dataclass(frozen=True, kw_only=True)
class Eval:
    """Measure a checkpoint on held-out text: bits a byte left to right and in gaps, and decoded gaps."""

    checkpoint: Annotated[Path, tyro.conf.arg(aliases=["-c"])]
    """Folder of a run, or of weights."""
    data: str
    """Text, as for `upalm data build`; the tenth of its documents that training leaves out is measured on."""
    n_rows: int = 160
    """Gaps of each kind."""
    n_decoded: int = 96
    """Of them, how many single-line gaps are also decoded."""
    json: Path | None = None
    """File to write the numbers to."""

    def __call__(self) -> None:
        model, tokenizer = load_model(self.checkpoint)
        documents = text.load(self.data).validation
        lines, words = rows_of(documents, tokenizer, model.config.seq_len, self.n_rows)
        found = measure(model, tokenizer, documents, lines, words, n_decoded=self.n_decoded)
        table = Table(title=f"{self.checkpoint} on {len(documents)} held-out documents")
        for name in ("metric", "mean [95% interval]", "rows"):
            table.add_column(name)
        for name, estimate in found.estimates().items():
            table.add_row(name, str(estimate), str(estimate.n))
        console = Console(highlight=False)
        console.print(table)
        console.print(f"infills with mode {found.infill_mode}, continues {found.left_only_form}: what suits it most")
        if self.json is not None:
            numbers = {name: estimate._asdict() for name, estimate in found.estimates().items()}
            self.json.write_text(json.dumps(numbers, indent=1) + "\n")


def main(words: list[str]) -> None:
    """`upalm eval ...`."""
    tyro.cli(Eval, prog="upalm eval", args=words)()
