"""Write the tables of docs/results.md that have raw numbers in docs/results: `python docs/results_tables.py`.

A table stands between `<!-- NAME -->` and `<!-- end -->`. A test fails when a page and its numbers differ.
"""

import json
import re
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE / "results.md"
ORDER = (
    "infill_bits_per_byte",
    "left_only_bits_per_byte",
    "infill_gain",
    "infill_gain_shuffled",
    "suffix_use",
    "multi_span_bits_per_byte",
    "causal_bits_per_byte",
    "format_ok",
    "line_exact_match",
)


def format_estimate(estimate: dict[str, float]) -> str:
    return f"{estimate['mean']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"


def format_rows(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def checkpoints_table(results: dict[str, Any]) -> str:
    """One column per checkpoint, and one row per measure."""
    found = {name: checkpoint["estimates"] for name, checkpoint in results["checkpoints"].items()}
    rows = [[f"`{key}`", *(format_estimate(estimates[key]) for estimates in found.values())] for key in ORDER]
    return format_rows(["held-out Python source", *found], rows)


def differences_table(results: dict[str, Any]) -> str:
    """One row per pair of checkpoints: paired differences on the same rows."""
    pairs = results["differences"]
    keys = list(next(iter(pairs.values())))
    rows = [[pair, *(format_estimate(estimates[key]) for key in keys)] for pair, estimates in pairs.items()]
    return format_rows(["bits per byte", *(f"`{key}`" for key in keys)], rows)


TABLES = {
    "smollm2 checkpoints": ("smollm2.json", checkpoints_table),
    "smollm2 differences": ("smollm2.json", differences_table),
}


def with_tables(page: str) -> str:
    """Replace every table of a page by that of its numbers."""
    for name, (file, make) in TABLES.items():
        table = make(json.loads((HERE / "results" / file).read_text()))
        page, n_found = re.subn(
            rf"(<!-- {name} -->\n).*?(<!-- end -->)", lambda m, t=table: f"{m[1]}\n{t}\n\n{m[2]}", page, flags=re.DOTALL
        )
        if n_found != 1:
            raise ValueError(f"{PAGE.name} has {n_found} places for the table {name!r}, expected 1.")
    return page


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text("utf-8")), "utf-8")
