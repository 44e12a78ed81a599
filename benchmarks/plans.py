"""The table of docs/plans.md: one row for each full-size recipe and slice, each compiled by the TPU compiler.

    python benchmarks/plans.py [WORDS ...]    # all rows, or those that have these words in them; a minute or two each

Figures are the compiler's and arithmetic on published peaks, so they repeat to the digit with the same `libtpu`. They
are kept in tests/golden/plans.json, which CI compares with.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

from upalm.planning import search
from upalm.planning.search import Request

ROWS = (
    Request("ul2r_540b", "540b", (), "v4:8x8x8", 1),
    Request("ul2r_62b", "62b", (), "v4:4x4x4", 1),
    Request("ul2r_8b", "8b", (), "v4:4x4x4", 1),
    Request("palm_8b", "8b", (), "v4:4x8x8", 1),
    Request("palm_62b", "62b", (), "v4:8x8x8", 1),
    Request("palm_540b", "540b", (), "v4:12x16x16", 2),
    Request(
        "palm_540b",
        "540b",
        ("--start.model.remat", "matmuls", "--accumulation", "2", "--mesh.model", "24"),
        "v4:12x16x16",
        2,
    ),
    Request("ul2r_540b", "540b", ("--mesh.model", "16"), "v5p:4x8x8", 1),
    Request("ul2r_62b", "62b", ("--accumulation", "1", "--mesh.model", "4"), "v5p:4x4x4", 1),
    Request("ul2r_8b", "8b", (), "v5p:4x4x4", 1),
    Request("ul2r_540b", "540b", (), "v6e:16x16", 2),
    Request("ul2r_62b", "62b", ("--start.remat", "kept", "--accumulation", "1", "--mesh.model", "4"), "v6e:8x8", 1),
    Request("ul2r_8b", "8b", (), "v6e:8x8", 1),
)
GOLDEN = Path(__file__).parent.parent / "tests" / "golden" / "plans.json"
PAGE = Path(__file__).parent.parent / "docs" / "plans.md"
BEGIN, END = "<!-- made by benchmarks/plans.py: begin -->", "<!-- end -->"


def table(found: dict[str, dict]) -> str:
    lines = [
        "| recipe and slice | chips | mesh | GiB per chip | to spare | step, s | bound by | MFU | nothing overlaps, s "
        "| remat | sent per chip, GiB | hours | chip-hours |",
        "|---|---:|---|---:|---:|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, f in found.items():
        mesh = " x ".join(str(n) for n in f["mesh"].values())
        total = f["memory_gib"]["total"]
        lines.append(
            f"| {name} | {f['devices']:,} | {mesh} | {total:.1f} | {1 - total / f['capacity_gib']:.0%} | "
            f"{f['step_seconds']:.2f} | {f['bound_by']} | {f['mfu']:.0%} | {f['serial_seconds']:.2f} | "
            f"{f['remat_share']:.0%} | {f['collective_bytes'] / 2**30:,.0f} | {f['run_hours']:,.0f} | "
            f"{f['chip_hours']:,.0f} |"
        )
    return "\n".join(lines)


def main(words: list[str]) -> None:
    kept = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    for request in ROWS:
        name = str(request)
        if words and not all(word in name for word in words):
            continue
        try:
            kept[name] = search.plan_in_subprocess(request)
        except ValueError as e:
            print(f"{name}: {e}")
            continue
        print(json.dumps({k: v for k, v in kept[name].items() if k != "collectives"}))
        rows = {str(r): kept[str(r)] for r in ROWS if str(r) in kept}
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(json.dumps(rows, indent=1) + "\n")
    rows = {str(r): kept[str(r)] for r in ROWS if str(r) in kept}
    if PAGE.exists():
        before, after = PAGE.read_text().split(BEGIN)[0], PAGE.read_text().split(END)[1]
        made = f"{BEGIN}\n\nlibtpu {version('libtpu')}, jax {version('jax')}.\n\n{table(rows)}\n\n{END}"
        PAGE.write_text(before + made + after)


if __name__ == "__main__":
    main(sys.argv[1:])
