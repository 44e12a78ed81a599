"""Draw the figures of docs/results.md from the raw numbers in docs/results: `python docs/results_figures.py`.

Figures are SVG that follows a dark page. A test fails when a figure and its numbers differ.
"""

import json
import math
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
STYLE = """
text { font: 12px sans-serif; fill: #24292f } .grid { stroke: #d0d7de } .card { fill: #ffffff }
.c0 { stroke: #2b6cb0; fill: #2b6cb0 } .c1 { stroke: #b7600f; fill: #b7600f } .c2 { stroke: #2f855a; fill: #2f855a }
.c3 { stroke: #8a8f98; fill: #8a8f98 } .c4 { stroke: #805ad5; fill: #805ad5 } .c5 { stroke: #b83280; fill: #b83280 }
path { fill: none !important } .seed { opacity: 0.35; stroke-width: 1 } .mean { stroke-width: 2 }
.bar { stroke-width: 1.5 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .grid { stroke: #30363d } .card { fill: #161b22 } .c0 { stroke: #7db4f0; fill: #7db4f0 }
  .c1 { stroke: #f0a860; fill: #f0a860 } .c2 { stroke: #68d391; fill: #68d391 } .c4 { stroke: #b794f4; fill: #b794f4 }
}
"""
WIDTH, LEFT, RIGHT, PANEL, GAP = 760, 190, 20, 190, 56

Estimate = dict[str, Any]


class Curve(NamedTuple):
    """Estimates of one fork over steps."""

    name: str
    points: list[tuple[float, Estimate]]


def scale(values: Sequence[float], low: float, high: float) -> Callable[[float], float]:
    """Map the range of some values, with a margin, to [low, high]."""
    least, most = min(values), max(values)
    margin = 0.06 * (most - least) or 1.0
    return lambda x: low + (x - least + margin) / (most - least + 2 * margin) * (high - low)


def ticks(values: Sequence[float]) -> list[float]:
    """Choose up to six round numbers in the range of some values."""
    span = (max(values) - min(values)) or 1.0
    step = 10 ** math.floor(math.log10(span / 2))
    step *= next(k for k in (1, 2, 5, 10) if span / (step * k) <= 5)
    first = math.ceil(min(values) / step)
    return [round(i * step, 10) for i in range(first, math.floor(max(values) / step) + 1)]


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{style}"/>'


def write(x: float, y: float, words: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def page(parts: Sequence[str], height: float, caption: str) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" role="img">'
    card = f'<rect width="{WIDTH}" height="{height:.0f}" class="card"/>'
    return "\n".join([head, f"<title>{escape(caption)}</title><style>{STYLE}</style>", card, *parts, "</svg>"]) + "\n"


def draw_curves(panels: Sequence[tuple[str, Sequence[Curve]]], xs: str, caption: str) -> str:
    """Draw two panels in a row, one per metric: means with intervals over training, thin lines for seeds."""
    parts, height = list[str](), 150.0
    for i, curve in enumerate(panels[0][1]):
        parts += [dot(60 + 120 * i, 18, 4, f"c{i}"), write(70 + 120 * i, 22, curve.name)]
    for number, (title, curves) in enumerate(panels):
        left, top = 60 + (number % 2) * WIDTH / 2, 60 + (number // 2) * (height + GAP)
        right = left + WIDTH / 2 - 80
        points = [point for curve in curves for point in curve.points]
        values = [value for _, e in points for value in (e["low"], e["high"], *e["by_seed"])]
        if min(values) < 0:
            values.append(0.0)
        x, y = scale([n for n, _ in points], left, right), scale(values, top + height, top)
        parts.append(write(left - 40, top - 10, title))
        for tick in ticks(values):
            parts += [line(left, y(tick), right, y(tick), "grid"), write(left - 6, y(tick) + 4, f"{tick:g}", "end")]
        if min(values) < 0:
            parts.append(line(left, y(0), right, y(0), "c3 bar"))
        for n in sorted({n for n, _ in points}):
            parts.append(write(x(n), top + height + 16, f"{n:g}", "middle"))
        for i, (_, some) in enumerate(curves):
            at = [x(n) + 3 * i for n, _ in some]  # beside each other
            for seed in range(min(len(e["by_seed"]) for _, e in some)):
                parts.append(path(at, [y(e["by_seed"][seed]) for _, e in some], f"c{i} seed"))
            parts.append(path(at, [y(e["mean"]) for _, e in some], f"c{i} mean"))
            parts += [line(a, y(e["low"]), a, y(e["high"]), f"c{i} bar") for a, (_, e) in zip(at, some, strict=True)]
            parts += [dot(a, y(e["mean"]), 2.5, f"c{i}") for a, (_, e) in zip(at, some, strict=True)]
    bottom = 60 + (len(panels) + 1) // 2 * (height + GAP)
    parts.append(write(60, bottom - 12, xs))
    return page(parts, bottom, caption)


def dot(x: float, y: float, r: float, style: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r:g}" class="{style}"/>'


def path(xs: Sequence[float], ys: Sequence[float], style: str) -> str:
    points = " L".join(f"{a:.1f} {b:.1f}" for a, b in zip(xs, ys, strict=False))
    return f'<path d="M{points}" class="{style}"/>'


def draw_dots(panels: Sequence[tuple[str, dict[str, Estimate]]], caption: str) -> str:
    """Draw a panel per metric and a row per fork: the mean with its interval, small dots for seeds."""
    parts, top = list[str](), 30.0
    for title, rows in panels:
        values = [x for e in rows.values() for x in (e["low"], e["high"], *e["by_seed"])] + [0.0]
        x, height = scale(values, LEFT, WIDTH - RIGHT), 22 * len(rows)
        parts.append(write(LEFT, top - 8, title))
        for tick in ticks(values):
            parts.append(line(x(tick), top, x(tick), top + height, "grid"))
            parts.append(write(x(tick), top + height + 15, f"{tick:g}", "middle"))
        parts.append(line(x(0), top, x(0), top + height, "c3 bar"))
        for i, (name, e) in enumerate(rows.items()):
            at = top + 22 * i + 11
            parts += [write(LEFT - 10, at + 4, name, "end"), line(x(e["low"]), at, x(e["high"]), at, "c0 bar")]
            parts += [dot(x(value), at, 2, "c0 seed") for value in e["by_seed"]]
            parts.append(dot(x(e["mean"]), at, 4, "c0"))
        top += height + GAP
    return page(parts, top - 20, caption)


# --- Forks of SmolLM2 -----------------------------------------------------------------------------


KINDS = {"line": "a line", "short": "1 to 3 words", "several": "three gaps at once", "prose": "1 to 10 words of prose"}


def smollm2_curves(results: dict[str, Any]) -> str:
    """Gain and cost of each kind of gap over steps, of UL2R and its control, on the same rows."""
    checkpoints = list(results["checkpoints"].values())
    panels = [
        (f"{kind}/{end}", f"{words}: {y}")
        for kind, words in KINDS.items()
        for end, y in (
            ("infill_gain", "infill gain, bits per byte"),
            ("infill_bits_per_byte", "cost of the gap, bits per byte"),
        )
    ]
    panels += [("causal_bits_per_byte", "left to right, bits per byte"), ("format_ok", "share of well-formed answers")]
    drawn = []
    for metric, title in panels:
        curves = []
        for name, fork in (("UL2R", "ul2r"), ("control", "causal")):
            some = [
                (c["step"], c.get("on_shared_rows", c["estimates"])[metric]) for c in checkpoints if c["fork"] == fork
            ]
            before = next(c.get("on_shared_rows", c["estimates"])[metric] for c in checkpoints if c["fork"] == "base")
            n_seeds = min(len(e["by_seed"]) for _, e in some)
            start = (0, before | {"by_seed": before["by_seed"] * n_seeds})
            curves.append(Curve(name, sorted([start, *some], key=lambda point: point[0])))
        drawn.append((title, curves))
    return draw_curves(
        drawn, "training steps of 8 x 256 tokens; thin lines: seeds", "Forks of SmolLM2-135M over training"
    )


def smollm2_ablations(results: dict[str, Any]) -> str:
    """Each change of UL2R minus UL2R itself, after 100 steps; nothing where none was measured."""
    pairs = {name: found for name, found in results["differences"].items() if name.endswith(" minus short@100")}
    if not pairs:
        return ""
    labels = results["labels"]
    pairs = {fork: pairs[f"{fork}@100 minus short@100"] for fork in labels if f"{fork}@100 minus short@100" in pairs}
    panels = [
        (
            f"{what}, minus that of ul2r_infill; {better} is better",
            {labels[fork].replace("`", ""): found[metric] for fork, found in pairs.items()},
        )
        for metric, what, better in (
            ("line/infill_gain", "infill gain of lines in bits per byte", "right"),
            ("several_whole/infill_gain", "infill gain of three gaps in bits per byte", "right"),
            ("format_ok", "share of well-formed answers", "right"),
            ("causal_bits_per_byte", "cost from left to right in bits per byte", "left"),
        )
    ]
    return draw_dots(panels, "100 steps from SmolLM2-135M: each fork minus ul2r_infill")


FIGURES = {
    "smollm2_curves.svg": ("smollm2_forks.json", smollm2_curves),
    "smollm2_ablations.svg": ("smollm2_ablations.json", smollm2_ablations),
}
"""Figures in docs/_static, each with its file of numbers and what draws it."""


def figures() -> dict[Path, str]:
    """Draw every figure whose numbers are there."""
    drawn = {
        HERE / "_static" / name: draw(json.loads((HERE / "results" / file).read_text("utf-8")))
        for name, (file, draw) in FIGURES.items()
        if (HERE / "results" / file).is_file()
    }
    return {path: svg for path, svg in drawn.items() if svg}


if __name__ == "__main__":
    for path_of_figure, svg in figures().items():
        path_of_figure.write_text(svg, "utf-8")
