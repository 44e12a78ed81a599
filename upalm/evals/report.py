"""Figures of runs and evaluations, and HTML reports in one file.

Every `draw_` function returns a matplotlib Figure that no window or global state knows of: save it with
`save_figure`, or let a notebook show it.

Dims: B rows of a batch, T positions of a row.
"""

import base64
import difflib
import html
import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.colors
import matplotlib.figure
import matplotlib.patches
import matplotlib.ticker
import numpy as np
from jaxtyping import Bool

from upalm.evals.bootstrap import Estimate
from upalm.ul2r.rows import Batch

COLOURS = ("#8a8f98", "#d98c3f", "#2b6cb0", "#2f855a", "#805ad5", "#b83280", "#0987a0", "#975a16")
_DPI = 160


class Figure(matplotlib.figure.Figure):
    """A figure that notebooks show without a plotting backend."""

    def _repr_png_(self) -> bytes:
        return png(self)


def png(figure: matplotlib.figure.Figure) -> bytes:
    """Render a figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    return buffer.getvalue()


def save_figure(path: Path, figure: matplotlib.figure.Figure) -> None:
    """Write a figure as PNG."""
    path.write_bytes(png(figure))


# --- Figures --------------------------------------------------------------------------------------


def draw_loss_curves(logs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Draw the training loss of each run by denoiser: a running mean over faint single steps.

    Args:
        logs: lines of metrics.jsonl by run. Runs have a panel each, as losses of different objectives do not compare.
    """
    figure = Figure(figsize=(4.2 * len(logs), 3.2), layout="constrained")
    axes = figure.subplots(1, len(logs), squeeze=False)[0]
    for axis, (name, lines) in zip(axes, logs.items(), strict=True):
        denoisers = list(dict.fromkeys(k for line in lines for k in line if k.startswith("loss_")))
        for key, colour in zip(denoisers or ["loss"], COLOURS[2:] * 9, strict=False):
            points = [(line["step"], line[key]) for line in lines if math.isfinite(line.get(key) or math.nan)]
            if points:
                steps, losses = np.array(points, float).T
                axis.plot(steps, losses, color=colour, lw=0.7, alpha=0.25)
                axis.plot(steps, smooth(losses), color=colour, lw=2, label=_name_denoiser(key))
        axis.set(title=name, xlabel="step", ylabel="nats per loss token")
        axis.margins(x=0.02)
        if len(denoisers) > 1:
            axis.legend(frameon=False)
        _tidy(axis)
    return figure


def _name_denoiser(key: str) -> str:
    name = key.removeprefix("loss_")
    return name.upper() if len(name) == 1 else name


def smooth(values: np.ndarray, share: float = 0.15) -> np.ndarray:
    """Return the running mean over a window of `share` of the values, cut off at both ends."""
    half = max(1, round(len(values) * share / 2))
    total, i = np.concatenate([[0.0], np.cumsum(values)]), np.arange(len(values))
    first, end = np.maximum(i - half, 0), np.minimum(i + half + 1, len(values))
    return (total[end] - total[first]) / (end - first)


def draw_masks(batch: Batch, visible: Bool[np.ndarray, "B T T"], names: Sequence[str]) -> Figure:
    """Draw the attention mask of one row per denoiser, strong at positions with a loss.

    Args:
        batch: rows [B, T]; the first row with a denoiser is drawn for it.
        visible: which keys (last axis) each query attends to.
        names: of the denoisers.
    """
    figure = Figure(figsize=(3.4 * len(names), 3.8), layout="constrained")
    axes = figure.subplots(1, len(names), squeeze=False)[0]
    has = [np.flatnonzero(((batch.segment_ids > 0) & (batch.denoiser_ids == i)).any(-1)) for i in range(len(names))]
    palette = np.array([matplotlib.colors.to_rgb(c) for c in (COLOURS[2:] * 9)[: len(names)]])
    for axis, name, rows in zip(axes, names, has, strict=True):
        if len(rows):
            b = rows[0]
            strength = np.where(batch.loss_weights[b] > 0, 1.0, 0.45)[:, None]
            attended = visible[b] & (batch.segment_ids[b] > 0)[:, None]
            colours = (1 - strength * (1 - palette[batch.denoiser_ids[b]]))[:, None]
            axis.imshow(np.where(attended[..., None], colours, 1.0), interpolation="nearest")
        axis.set(xlabel="key position", ylabel="query position", title=f"a row with {name}")
    patches = [matplotlib.patches.Patch(color=tuple(c), label=name) for c, name in zip(palette, names, strict=True)]
    axes[-1].legend(handles=patches, loc="upper right")
    return figure


class Panel(NamedTuple):
    """Estimates to draw on one axis."""

    title: str
    estimates: Mapping[str, Mapping[str, Estimate]]
    """By row label, then by series."""
    better: str = ""
    """Note under the axis, such as "left is better"."""
    limits: tuple[float, float] | None = None


def draw_estimates(panels: Sequence[Panel]) -> Figure:
    """Draw estimates as points with their 95% intervals, a panel each, with a line at zero."""
    heights = [max(2, sum(len(series) for series in panel.estimates.values())) for panel in panels]
    figure = Figure(figsize=(6.4, 0.9 * len(panels) + 0.24 * sum(heights)), layout="constrained")
    axes = figure.subplots(len(panels), 1, height_ratios=[h + 1 for h in heights], squeeze=False)[:, 0]
    legends = set[tuple[str, ...]]()
    for axis, panel in zip(axes, panels, strict=True):
        names = list(dict.fromkeys(name for series in panel.estimates.values() for name in series))
        colours = dict(zip(names, COLOURS[2:3] if len(names) == 1 else COLOURS, strict=False))
        for row, series in enumerate(panel.estimates.values()):
            for i, (name, e) in enumerate(series.items()):
                y = row + 0.22 * (i - (len(series) - 1) / 2)
                style = {"color": colours[name], "ms": 6, "capsize": 3, "lw": 1.5}
                label = name if row == 0 and len(names) > 1 else None
                axis.errorbar(e.mean, y, xerr=[[e.mean - e.low], [e.high - e.mean]], fmt="o", label=label, **style)
        axis.axvline(0, color="black", lw=0.8, zorder=0)
        axis.set_yticks(range(len(panel.estimates)), list(panel.estimates))
        axis.set(ylim=(len(panel.estimates) - 0.5, -0.5), xlabel=panel.better)
        axis.set_title(panel.title, fontsize=10, loc="left")
        if panel.limits is not None:
            axis.set_xlim(panel.limits)
        if len(names) > 1 and tuple(names) not in legends:
            legends.add(tuple(names))
            axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
        _tidy(axis)
    return figure


class SavingsPoint(NamedTuple):
    """A checkpoint in a scaling plot."""

    n_params: int
    family: str
    start: tuple[float, float]
    """FLOPs and score of the checkpoint that was continued; for the causal run, its own."""
    position: tuple[float, float]
    """FLOPs and score."""
    spread: float
    """Half the range over seeds."""


def draw_savings(measures: Mapping[str, Sequence[SavingsPoint]]) -> Figure:
    """Draw score against training FLOPs, a panel per measure (U-PaLM's Figures 1 and 2).

    A line follows each causal run; a dotted segment leads from each checkpoint to its continuations.
    """
    figure = Figure(figsize=(5.4 * len(measures), 4.4), layout="constrained")
    axes = figure.subplots(1, len(measures), squeeze=False)[0]
    for axis, (measure, points) in zip(axes, measures.items(), strict=True):
        sizes = sorted(
            {p.n_params for p in points}, key=lambda n: min(p.position[0] for p in points if p.n_params == n)
        )
        for n_params, colour in zip(sizes, COLOURS[1:] * 9, strict=False):
            _draw_size(axis, format_size(n_params), [p for p in points if p.n_params == n_params], colour)
        axis.set(xscale="log", xlabel="training FLOPs (6ND)", title=measure.replace("_", " "))
        axis.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%.0e"))
        axis.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
        axis.tick_params(axis="x", labelsize=8)
        axis.legend(fontsize=8, frameon=False)
        _tidy(axis)
    return figure


def format_size(n_params: int) -> str:
    """Return a number of parameters with three digits.

    >>> [format_size(n) for n in (315_000, 135_000_000, 1_540_000_000, 540_350_000_000)]
    ['0.315M', '135M', '1.54B', '540B']
    """
    return f"{n_params / 1e9:.3g}B" if n_params >= 999.5e6 else f"{n_params / 1e6:.3g}M"


def _draw_size(axis: Any, size: str, points: Sequence[SavingsPoint], colour: str) -> None:
    """Draw the causal run of one size, and its continuations."""
    run = sorted(p.position for p in points if p.family == "causal")
    if run:
        axis.plot(*zip(*run, strict=True), "o-", color=colour, ms=4, label=f"{size} causal")
    for family, marker in (("ul2r", "^"), ("control", "s")):
        for i, p in enumerate(p for p in points if p.family == family):
            axis.plot(*zip(p.start, p.position, strict=True), ":", color=colour, lw=1.2)
            style = {"color": colour, "mfc": colour if family == "ul2r" else "white", "ms": 7, "capsize": 3, "lw": 1}
            label = f"{size} {family}" if i == 0 else None
            axis.errorbar(*p.position, yerr=p.spread, fmt=marker, label=label, **style)


def _tidy(axis: Any) -> None:
    axis.grid(alpha=0.25, lw=0.6)
    axis.spines[["top", "right"]].set_visible(False)


# --- HTML -----------------------------------------------------------------------------------------

_STYLE = """
:root { color-scheme: light dark; --ink: #1a202c; --page: #fff; --soft: #f4f4f1; --line: #d5d8dd; --quiet: #555d69;
  --same: #bfeccc; --other: #fde2b8; --truth: #dbe2ea }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7ec; --page: #16181d; --soft: #22252c; --line: #3a3f49;
  --quiet: #a3abb8; --same: #1f5134; --other: #5c431a; --truth: #36404f }
  img { filter: invert(.91) hue-rotate(180deg) } }
* { box-sizing: border-box }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: var(--ink);
  background: var(--page); overflow-wrap: break-word }
h1 { font-size: 1.7rem; line-height: 1.2 } h2 { font-size: 1.25rem; margin-top: 2.2rem }
.lead { font-size: 1.1rem }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
td, th { padding: .3rem .8rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap }
td:first-child, th:first-child { text-align: left; padding-left: 0; white-space: normal; min-width: 4.5rem }
.fills td { text-align: left; white-space: pre-wrap; vertical-align: top }
figure { margin: 1rem 0 } figure img { max-width: 100%; height: auto }
figure img.wide { min-width: 36rem }
figcaption, small { color: var(--quiet); font-size: .88rem }
pre { background: var(--soft); padding: .8rem; overflow-x: auto; font-size: 13px; border-radius: 6px; margin: .4rem 0 }
code { font-size: .87em } mark { color: inherit; background: var(--other); border-radius: 2px }
mark.same { background: var(--same) } mark.truth { background: var(--truth) }
section.gap { margin: 1.6rem 0 }
"""


def format_figure(figure: matplotlib.figure.Figure, caption: str) -> str:
    """Return a figure as HTML that needs no other file."""
    data, text = base64.b64encode(png(figure)).decode(), html.escape(caption)
    css = "wide" if figure.get_figwidth() > 7 else ""
    image = f'<img class="{css}" alt="{text}" src="data:image/png;base64,{data}">'
    return f'<figure><div class="scroll">{image}</div><figcaption>{text}</figcaption></figure>'


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], css: str = "") -> str:
    """Return a table as HTML; cells are HTML, headers are text."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    top = f"<tr>{head}</tr>" if header else ""
    return f'<div class="scroll"><table class="{css}">{top}{body}</table></div>'


def format_estimates(models: Mapping[str, Mapping[str, Estimate]]) -> str:
    """Return metrics by model as an HTML table with intervals and numbers of rows."""
    rows = []
    for name, first in next(iter(models.values())).items():
        estimates = [metrics[name] for metrics in models.values()]
        cells = [f"{e.mean:.3f}<br><small>[{e.low:.3f}, {e.high:.3f}]</small>" for e in estimates]
        rows.append([f"{html.escape(name.replace('_', ' '))} <small>n={first.n}</small>", *cells])
    return format_table(("", *models), rows)


def format_fills(before: str, truth: str, after: str, fills: Mapping[str, str]) -> str:
    """Return one gap as HTML: its text, and each model's fill, coloured where it agrees with the missing text."""
    text = f'{html.escape(before)}<mark class="truth">{html.escape(truth)}</mark>{html.escape(after)}'
    rows = [(html.escape(name), f"<code>{_colour(fill, truth.strip())}</code>") for name, fill in fills.items()]
    return f'<section class="gap"><pre>{text}</pre>{format_table((), rows, "fills")}</section>'


def _colour(fill: str, truth: str) -> str:
    """Mark the words of a fill: those in order with the truth's, and the others."""
    words, true_words = (re.findall(r"\s*(?:\w+|[^\w\s])|\s+", text) for text in (fill, truth))
    pieces = []
    for tag, a, b, _, _ in difflib.SequenceMatcher(None, words, true_words, autojunk=False).get_opcodes():
        if a < b:
            css = ' class="same"' if tag == "equal" else ""
            pieces.append(f"<mark{css}>{html.escape(''.join(words[a:b]))}</mark>")
    return "".join(pieces) or "<small>(nothing)</small>"


def save_html(path: Path, title: str, sections: Sequence[tuple[str, str]]) -> None:
    """Write sections of HTML, each with its heading, as one self-contained page."""
    body = "".join(f"<h2>{html.escape(heading)}</h2>{content}" for heading, content in sections)
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>'
        f"<body><h1>{html.escape(title)}</h1>{body}</body></html>"
    )
    path.write_text(page, encoding="utf-8")
