"""Measure the checkpoints of a UL2R run along its training, by the gaps of `fork_grid.py`.

upalm run ul2r_tiny ul2r --checkpoints.last 99
python benchmarks/curve.py --run runs/ul2r_tiny --json docs/results/ul2r_tiny_curve.json
"""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import tyro
from fork_grid import cut_blocks, gain

import upalm
from upalm.checkpoints.folder import load_model
from upalm.data import sources
from upalm.data.tokenizer import Tokenizer
from upalm.distributed.runtime import enable_compilation_cache
from upalm.evals.infilling import gaps, scores
from upalm.evals.infilling.held_out import MAX_SPAN_TOKENS, MODES, cut_gaps
from upalm.files import write_atomically
from upalm.inference.config import Mode


@dataclass(frozen=True)
class Case:
    """A run, and the file for the numbers."""

    run: Path
    """Folder of the run; the steps that it kept are measured."""
    json: Path
    """File for the numbers."""
    base: Path = upalm.PALM_TINY
    """What the run continued, measured as step 0."""
    n_rows: int = 160
    """Gaps of each kind."""
    n_decoded: int = 96
    """Lines that are also decoded without the grammar."""
    seq_len: int = 256
    """Longest prompt with its answer, and longest excerpt, in tokens."""


def fits_rows(tokenizer: Tokenizer, seq_len: int, text: str) -> bool:
    return len(tokenizer.encode(text)) <= seq_len


def main(args: Case) -> None:
    enable_compilation_cache()
    held_out = sources.load("stdlib").validation
    steps = sorted((p for p in (args.run / "steps").iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
    results = {}
    for folder in (args.base, *steps):
        model, tokenizer, info = load_model(folder)
        lines, threes = cut_gaps(held_out, tokenizer, args.seq_len, args.n_rows, inputs_eos=True)
        kinds = {
            "line": lines,
            "words": gaps.fill_all_but_middle(threes),
            "several": threes,
            "block": cut_blocks(held_out, args.n_rows),
        }
        found = {kind: gain(model, tokenizer, rows, MODES, info.inputs_eos) for kind, rows in kinds.items()}
        costs = {mode: scores.score_spans(model, tokenizer, lines, mode, info.inputs_eos) for mode in MODES}
        mode: Mode = min(MODES, key=lambda m: costs[m].bits.bits.sum())
        free = scores.decode_rows(
            *(model, tokenizer, lines[: args.n_decoded], mode),
            max_new_tokens=MAX_SPAN_TOKENS,
            constrained=False,
            inputs_eos=info.inputs_eos,
        )
        fits = partial(fits_rows, tokenizer, args.seq_len)
        causal = scores.score_texts(model, tokenizer, list(gaps.take_excerpts(held_out, args.n_rows, fits)))
        step = 0 if folder == args.base else int(folder.name)
        results[step] = found | {
            "mode": mode,
            "tokens": 0 if folder == args.base else info.stages[-1].n_tokens if info.stages else None,
            "causal": float(causal.bits.sum() / causal.n_bytes.sum()),
            "format_ok": float(np.mean(free.format_ok)),
            "closing_nll": costs[mode].estimates()["closing_nll"]._asdict(),
        }
        print(step, {kind: round(x["gain"]["mean"], 3) for kind, x in found.items()}, results[step]["format_ok"])
    write_atomically(args.json, json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Case, description=__doc__))
