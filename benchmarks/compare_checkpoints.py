"""Compare checkpoints of one tokenizer on the same held-out gaps: intervals, and differences in pairs.

    python benchmarks/compare_checkpoints.py --data stdlib --json docs/results/smollm2.json \\
        --checkpoints base=models/smollm2 causal=runs/causal_smollm2 ul2r=runs/ul2r_smollm2

The measures are those of `upalm eval`. Differences are each checkpoint minus those named before it, in bits per byte.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import tyro

from upalm.checkpoints.folder import load_model, open_checkpoint
from upalm.data import sources
from upalm.data.readers import Document
from upalm.distributed.runtime import enable_compilation_cache
from upalm.evals.infilling.gaps import Gap
from upalm.evals.infilling.held_out import Measurement, compare, cut_gaps, measure
from upalm.files import write_atomically


@dataclass(frozen=True)
class Case:
    """Checkpoints on the same rows."""

    checkpoints: tuple[str, ...]
    """NAME=FOLDER of each."""
    json: Path
    """File for the numbers."""
    data: str = sources.STDLIB
    """Text, of which the held-out tenth is measured."""
    seq_len: int = 512
    """Longest prompt with its answer, and longest excerpt, in tokens; at most what the rows of all checkpoints hold."""
    n_rows: int = 64
    """Gaps of each kind."""
    n_decoded: int = 24
    """Single-line gaps that are also decoded."""


class Rows(NamedTuple):
    """What every checkpoint is measured on."""

    documents: list[Document]
    lines: list[Gap]
    words: list[Gap]
    seq_len: int


def cut_rows(args: Case, folders: Mapping[str, Path]) -> Rows:
    """Cut rows that fit every checkpoint.

    Raises:
        ValueError: the checkpoints have different tokenizers, by name.
    """
    opened = {name: open_checkpoint(folder) for name, folder in folders.items()}
    hashes = {name: tokenizer.hash for name, (_, tokenizer, _) in opened.items()}
    if len(set(hashes.values())) > 1:
        found = ", ".join(f"{name} {digest}" for name, digest in hashes.items())
        raise ValueError(f"the checkpoints have different tokenizers ({found}): give those of one tokenizer.")
    seq_len = min(args.seq_len, *(config.seq_len for config, *_ in opened.values()))
    tokenizer = next(iter(opened.values()))[1]
    documents = sources.load(args.data).validation
    # rows must fit whichever checkpoint fills them, so all have room for EOS
    return Rows(documents, *cut_gaps(documents, tokenizer, seq_len, args.n_rows, inputs_eos=True), seq_len)


def measure_checkpoint(args: Case, folder: Path, rows: Rows) -> tuple[Measurement, int]:
    """Measure one checkpoint; returns its parameters, too."""
    model, tokenizer, info = load_model(folder)
    settings = {"seq_len": rows.seq_len, "n_decoded": args.n_decoded, "inputs_eos": info.inputs_eos}
    return measure(model, tokenizer, rows.documents, rows.lines, rows.words, **settings), model.config.n_params


def describe(found: Measurement, n_params: int) -> dict:
    """The numbers of one checkpoint, and its first fills beside the missing lines."""
    return {
        "n_params": n_params,
        "mode": found.infill_mode,
        "left_only_format": found.left_only_format,
        "estimates": {name: estimate._asdict() for name, estimate in found.estimates().items()},
        "fills": [found.prediction(i) for i in range(min(8, len(found.filled.spans)))],
    }


def main(args: Case) -> None:
    enable_compilation_cache()
    folders = {name: Path(folder) for name, folder in (pair.split("=", 1) for pair in args.checkpoints)}
    rows = cut_rows(args, folders)
    measured, report = {}, {}
    for name, folder in folders.items():
        started = time.monotonic()
        measured[name], n_params = measure_checkpoint(args, folder, rows)
        report[name] = describe(measured[name], n_params)
        print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)
        for key, estimate in measured[name].estimates().items():
            print(f"  {key} {estimate.mean:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]", flush=True)
    differences = {
        f"{later} minus {earlier}": {
            key: estimate._asdict() for key, estimate in compare(measured[later], measured[earlier]).items()
        }
        for earlier, later in combinations(measured, 2)
    }
    settings = {"data": args.data, "seq_len": rows.seq_len, "n_rows": args.n_rows, "n_decoded": args.n_decoded}
    results = {"settings": settings, "checkpoints": report, "differences": differences}
    write_atomically(args.json, json.dumps(results, indent=1, allow_nan=False) + "\n")
    for pair, estimates in differences.items():
        for key, estimate in estimates.items():
            print(f"{pair}: {key} {estimate['mean']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]")


if __name__ == "__main__":
    main(tyro.cli(Case, description=__doc__))
