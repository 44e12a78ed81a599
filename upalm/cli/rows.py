"""Drawings of `upalm data show`: rows in colour, the statistics of a mixture, attention masks."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from rich.table import Table
from rich.text import Text

from upalm.data.loader import Loader, Statistics
from upalm.data.tokenizer import Tokenizer
from upalm.evals import report
from upalm.model.attention import key_range
from upalm.terminal import printable
from upalm.ul2r.rows import Batch

COLOURS = MODE, PREFIX, SENTINEL, TARGET = "bold magenta", "cyan", "bold yellow", "green"


def legend() -> Text:
    """Name the parts of a row, each in its colour."""
    names = zip(("mode token", "inputs", "sentinels", "targets"), COLOURS, strict=True)
    return Text.assemble(*((f"{name}  ", style) for name, style in names))


def row(loader: Loader, tokenizer: Tokenizer, number: int) -> Text:
    """Colour a row, segment by segment: mode token, inputs, sentinels and targets."""
    shown = Text()
    for segment, example in loader.segments(number):
        denoiser = loader.mixture[segment.denoiser_id]
        n_mode = len(loader.segmenters[segment.denoiser_id].mode_ids)
        shown.append(f"\n── {denoiser.name}: {segment.end - segment.start} tokens ", style="dim")
        shown.append(f"-> {len(example.inputs)} inputs, {len(example.targets)} targets\n", style="dim")
        shown.append(printable(tokenizer.decode(example.inputs[:n_mode])), style=MODE)
        for ids, style in ((example.inputs[n_mode:], PREFIX), (example.targets, TARGET)):
            shown.append_text(_coloured(tokenizer, ids, style))
            shown.append(" → " if style == PREFIX else "⏹\n" if denoiser.ends_with_eos else "\n", style="dim")
    return shown


def _coloured(tokenizer: Tokenizer, ids: np.ndarray, style: str) -> Text:
    shown = Text()
    is_sentinel = tokenizer.is_sentinel(ids)
    for part in np.split(ids, np.flatnonzero(np.diff(is_sentinel.astype(int))) + 1):
        if len(part):
            shown.append(printable(tokenizer.decode(part)), style=SENTINEL if tokenizer.is_sentinel(part[0]) else style)
    return shown


def statistics_table(counted: Statistics) -> Table:
    """Tabulate the shares of examples, source tokens and loss tokens by denoiser, and how full rows are."""
    counts = np.array([(d.examples, d.source_tokens, d.loss_tokens) for d in counted.denoisers])
    totals = np.maximum(counts.sum(0), 1)
    padding = f"{counted.padding} of {counted.positions} positions are padding"
    table = Table(title=f"{counted.rows} rows, {counted.fill:.2%} full ({padding})")
    for name in ("denoiser", "examples", "source tokens", "loss tokens", "spans per example"):
        table.add_column(name, justify="left" if name == "denoiser" else "right")
    for d, numbers in zip(counted.denoisers, counts, strict=True):
        shares = (f"{n} ({n / total:.1%})" for n, total in zip(numbers, totals, strict=True))
        table.add_row(d.name, *shares, f"{d.spans / max(d.examples, 1):.1f}")
    return table


def save_mask(path: Path, loader: Loader, step: int = 0) -> None:
    """Draw which positions each position sees, in rows that hold every denoiser."""
    batch: Batch = loader.batch(step)
    visible = key_range(jnp.asarray(batch.segment_ids), jnp.asarray(batch.prefix_mask)).mask(loader.config.seq_len)
    report.save_figure(path, report.draw_masks(batch, np.asarray(visible), [d.name for d in loader.mixture]))
