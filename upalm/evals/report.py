"""Pictures of a run, and the one-file HTML report."""

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import matplotlib.colors
import matplotlib.patches
import matplotlib.pyplot as plt
import matplotlib.ticker
import numpy as np

from upalm.ul2r.rows import Batch

matplotlib.use("Agg")


_COLOURS = ["#8a8f98", "#d98c3f", "#2b6cb0", "#2f855a", "#805ad5"]


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1a202c }
table { border-collapse: collapse } td, th { padding: .3rem .8rem; text-align: right; border-bottom: 1px solid #ddd }
td:first-child, th:first-child { text-align: left } img { max-width: 100%; margin: 1rem 0 }
pre { background: #f7f7f5; padding: .8rem; overflow-x: auto; font-size: 13px }
.gap { background: #c6f6d5; font-weight: bold } .truth { background: #e2e8f0 } small { color: #555 }
"""


def save_loss_curves(path: Path, logs: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Training loss of each run, a panel each: losses of different objectives are not comparable."""
    figure, axes = plt.subplots(1, len(logs), figsize=(4.5 * len(logs), 3), squeeze=False)
    for axis, (name, lines), colour in zip(axes[0], logs.items(), _COLOURS, strict=False):
        for key in ("loss", *sorted({k for line in lines for k in line if k.startswith("loss_")})):
            points = [(line["step"], line[key]) for line in lines if key in line]
            strong = key == "loss"
            style = {"color": colour, "lw": 2} if strong else {"lw": 0.8, "alpha": 0.7}
            axis.plot(*zip(*points, strict=True), label=key.removeprefix("loss_") if not strong else "all", **style)
        axis.set(title=name, xlabel="step", ylabel="nats per loss token")
        axis.legend(fontsize=7)
    _save(figure, path)


def save_masks(path: Path, batch: Batch, visible: np.ndarray, names: Sequence[str]) -> None:
    """What each position sees, in a row of each denoiser; coloured by denoiser, strong where a loss is taken.

    Args:
        path: of the PNG.
        batch: rows, [B, T]; the first that has a denoiser is drawn for it.
        visible: Bool[B, T, T], query by key.
        names: of the denoisers.
    """
    figure, axes = plt.subplots(1, len(names), figsize=(3.6 * len(names), 3.9), squeeze=False)
    has = [np.flatnonzero(((batch.segment_ids > 0) & (batch.denoiser_ids == i)).any(-1)) for i in range(len(names))]
    for axis, name, rows in zip(axes[0], names, has, strict=True):
        if len(rows):
            b = rows[0]
            colours = np.array([matplotlib.colors.to_rgb(c) for c in _COLOURS[1:]])[batch.denoiser_ids[b]]
            strength = np.where(batch.loss_weights[b] > 0, 1.0, 0.45)[:, None]
            shown = visible[b] & (batch.segment_ids[b] > 0)[:, None]
            picture = np.where(shown[..., None], (1 - strength * (1 - colours))[:, None], 1.0)
            axis.imshow(picture, interpolation="nearest")
        axis.set(xlabel="key position", ylabel="query position", title=f"a row with {name}")
    patches = [matplotlib.patches.Patch(color=c, label=name) for c, name in zip(_COLOURS[1:], names, strict=False)]
    axes[0][-1].legend(handles=patches, loc="upper right")
    _save(figure, path)


def save_metrics(path: Path, models: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> None:
    """Each metric as a panel of one bar a model, with intervals."""
    figure, axes = plt.subplots(1, len(names), figsize=(2.6 * len(names), 3.2), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        values = [m[name] for m in models.values()]
        means = [v["mean"] for v in values]
        spread = [[v["mean"] - v["low"] for v in values], [v["high"] - v["mean"] for v in values]]
        axis.bar(list(models), means, yerr=spread, color=_COLOURS[: len(models)], capsize=4)
        axis.axhline(0, color="black", lw=0.6)
        lows, highs = [v["low"] for v in values], [v["high"] for v in values]
        if min(lows) > 0.5 * max(highs):  # close together far from zero: look at the differences
            axis.set_ylim(min(lows) * 0.97, max(highs) * 1.02)
        axis.set_title(name.replace("_", " "), fontsize=9)
    _save(figure, path)


class Drawn(NamedTuple):
    """A checkpoint in a scaling plot."""

    size: str
    family: str
    start: tuple[float, float]
    """FLOPs and score of what it continues; its own, for the causal run."""
    at: tuple[float, float]
    spread: float
    """Half the range over seeds."""


def save_scaling(path: Path, measures: Mapping[str, Sequence[Drawn]]) -> None:
    """Score against training FLOPs, a panel a measure: a line along each causal run, a dotted segment from each
    checkpoint to what it became (U-PaLM's Figures 1 and 2).
    """
    figure, axes = plt.subplots(1, len(measures), figsize=(5.2 * len(measures), 4.2), squeeze=False)
    for axis, (measure, points) in zip(axes[0], measures.items(), strict=True):
        sizes = sorted({p.size for p in points}, key=lambda size: min(p.at[0] for p in points if p.size == size))
        for size, colour in zip(sizes, _COLOURS[1:] * len(sizes), strict=False):
            run = sorted(p.at for p in points if p.size == size and p.family == "causal")
            axis.plot(*zip(*run, strict=True), "o-", color=colour, ms=4, label=f"{size} causal")
            for family, marker in (("ul2r", "^"), ("control", "s")):
                some = [p for p in points if p.size == size and p.family == family]
                for i, p in enumerate(some):
                    axis.plot(*zip(p.start, p.at, strict=True), ":", color=colour, lw=1.2)
                    label = f"{size} {family}" if i == 0 else None
                    fill = colour if family == "ul2r" else "white"
                    style = {"color": colour, "mfc": fill, "ms": 6, "capsize": 3, "lw": 1}
                    axis.errorbar(*p.at, yerr=p.spread, fmt=marker, label=label, **style)
        axis.set(xscale="log", xlabel="training FLOPs (6ND)", title=measure.replace("_", " "))
        axis.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%.0e"))
        axis.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
        axis.tick_params(axis="x", labelsize=7)
        axis.legend(fontsize=7)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def table(models: Mapping[str, Mapping[str, Any]]) -> str:
    """Metrics by model, as HTML."""
    names = list(next(iter(models.values())))
    head = "".join(f"<th>{html.escape(m)}</th>" for m in models)
    rows = []
    for name in names:
        cells = "".join(
            f"<td>{v['mean']:.3f}<br><small>[{v['low']:.3f}, {v['high']:.3f}]</small></td>"
            for v in (m[name] for m in models.values())
        )
        n = next(iter(models.values()))[name]["n"]
        rows.append(f"<tr><td>{name.replace('_', ' ')} <small>n={n}</small></td>{cells}</tr>")
    return f"<table><tr><th></th>{head}</tr>{''.join(rows)}</table>"


def infill_block(before: str, truth: str, after: str, answers: Mapping[str, str]) -> str:
    """One gap, what was there, and what each model wrote, as HTML."""
    shown = html.escape(before) + f'<span class="truth">{html.escape(truth)}</span>' + html.escape(after)
    rows = "".join(
        f'<tr><td>{html.escape(m)}</td><td style="text-align:left"><code class="gap">{html.escape(a)}</code></td></tr>'
        for m, a in answers.items()
    )
    return f"<pre>{shown}</pre><table>{rows}</table>"


def save_html(path: Path, title: str, sections: Sequence[tuple[str, str]], figures: Sequence[Path]) -> None:
    """One self-contained file: sections of HTML, then the figures, embedded."""
    body = "".join(f"<h2>{html.escape(head)}</h2>{content}" for head, content in sections)
    pictures = "".join(
        f'<img alt="{f.stem}" src="data:image/png;base64,{base64.b64encode(f.read_bytes()).decode()}">' for f in figures
    )
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style><body><h1>{html.escape(title)}</h1>{body}<h2>Pictures</h2>{pictures}</body></html>"
    )
    path.write_text(page, encoding="utf-8")
