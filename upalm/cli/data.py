"""`upalm data build`, `upalm data show` and `upalm data check`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from upalm.cli import options
from upalm.data import shards, sources
from upalm.data.config import DataConfig, built_folders, open_source
from upalm.data.hf_tokenizer import has_tokenizer, load_tokenizer
from upalm.data.loader import Loader, Statistics, statistics
from upalm.data.tokenizer import SentencePiece, Tokenizer
from upalm.evals import report
from upalm.model.attention import key_range
from upalm.training.progress import Count
from upalm.ul2r.rows import Batch

COLOURS = MODE, PREFIX, SENTINEL, TARGET = "bold magenta", "cyan", "bold yellow", "green"


def row(loader: Loader, tokenizer: Tokenizer, number: int) -> Text:
    """A row, segment by segment: mode token, inputs, sentinels and targets each in a colour."""
    shown = Text()
    for segment, example in loader.segments(number):
        denoiser = loader.mixture[segment.denoiser_id]
        n_mode = len(loader.segmenters[segment.denoiser_id].mode_ids)
        shown.append(f"\n── {denoiser.name}: {segment.end - segment.start} tokens ", style="dim")
        shown.append(f"-> {len(example.inputs)} inputs, {len(example.targets)} targets\n", style="dim")
        shown.append(tokenizer.decode(example.inputs[:n_mode]), style=MODE)
        for ids, style in ((example.inputs[n_mode:], PREFIX), (example.targets, TARGET)):
            shown.append_text(_coloured(tokenizer, ids, style))
            shown.append(" → " if style == PREFIX else "⏹\n" if denoiser.ends_with_eos else "\n", style="dim")
    return shown


def _coloured(tokenizer: Tokenizer, ids: np.ndarray, style: str) -> Text:
    shown = Text()
    is_sentinel = tokenizer.is_sentinel(ids)
    for part in np.split(ids, np.flatnonzero(np.diff(is_sentinel.astype(int))) + 1):
        if len(part):
            shown.append(tokenizer.decode(part), style=SENTINEL if tokenizer.is_sentinel(part[0]) else style)
    return shown


def statistics_table(found: Statistics) -> Table:
    """Shares of examples, source tokens and loss tokens by denoiser, and how full rows are."""
    counts = np.array([(d.examples, d.source_tokens, d.loss_tokens) for d in found.denoisers])
    totals = np.maximum(counts.sum(0), 1)
    lost = f"{found.padding} of {found.positions} positions are padding"
    table = Table(title=f"{found.rows} rows, {found.fill:.2%} full ({lost})")
    for name in ("denoiser", "examples", "source tokens", "loss tokens", "spans an example"):
        table.add_column(name, justify="left" if name == "denoiser" else "right")
    for d, numbers in zip(found.denoisers, counts, strict=True):
        shares = (f"{n} ({n / total:.1%})" for n, total in zip(numbers, totals, strict=True))
        table.add_row(d.name, *shares, f"{d.spans / max(d.examples, 1):.1f}")
    return table


def save_mask(path: Path, loader: Loader, step: int = 0) -> None:
    """Draw what each position sees, in a row that has each denoiser."""
    batch: Batch = loader.batch(step)
    visible = key_range(jnp.asarray(batch.segment_ids), jnp.asarray(batch.prefix_mask)).mask(loader.config.seq_len)
    report.save_masks(path, batch, np.asarray(visible), [d.name for d in loader.mixture])


SHIPPED = Path(__file__).parents[1] / "assets" / "palm_tiny"


@dataclass(frozen=True)
class Build:
    """Tokenise text into shards for training.

    The same command again resumes an interrupted build.
    """

    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """`stdlib`, a file (.txt, .jsonl, .gz or .zst of them, .parquet, .arrow), or a folder of such files."""
    out: Annotated[str, tyro.conf.arg(metavar="FOLDER")]
    """Folder of the shards, on a disk or in a bucket (gs://...)."""
    tokenizer: str | None = None
    """Checkpoint folder, folder of shards, or SentencePiece model."""
    vocab_size: int = 32_000
    """Of the tokenizer that is trained on the text if none is given."""
    skip_undecodable: bool = False
    """Leave out text that is not UTF-8, and list it, instead of stopping."""

    def __call__(self) -> None:
        if self.tokenizer is not None:
            tokenizer = load_tokenizer(self.tokenizer)
        elif has_tokenizer(self.out):  # going on
            tokenizer = load_tokenizer(self.out)
        else:
            skipped = [] if self.skip_undecodable else None
            texts = (d.text for d in sources.documents(self.data, skipped=skipped))
            tokenizer = SentencePiece.train(texts, self.vocab_size)
        with Count("tokenised", ("documents", "tokens")) as count:
            made = shards.build(
                self.data, self.out, tokenizer, skip_undecodable=self.skip_undecodable, progress=count.update
            )
        counts = ", ".join(f"{made.n_tokens(split):,} {split} tokens" for split in shards.SPLITS)
        print(f"{made.documents:,} documents, {counts}, {len(made.shards)} shards in {self.out}")
        if made.skipped:
            print(f"left out {len(made.skipped)} that are not UTF-8 (in manifest.json): {', '.join(made.skipped[:5])}")


@dataclass(frozen=True)
class Check:
    """Verify the checksum of every shard."""

    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """Folder that `upalm data build` wrote."""

    def __call__(self) -> None:
        for split in shards.SPLITS:
            found = shards.Shards(self.data, split, load_tokenizer(self.data).hash)
            found.check()
            print(f"{split}: {len(found.shards)} shards, {found.n_tokens:,} tokens: whole")


@dataclass(frozen=True)
class Show:
    """Print rows of a mixture in colour, with statistics."""

    data: options.Data = DataConfig.source
    """`stdlib`, text, or a folder that `upalm data build` wrote."""
    mixture: str = DataConfig.mixture
    """Name of a mixture (ul2r, ul2r_eos, ul2r_split_x, ul2, prefix_lm, causal), or denoisers as in Python."""
    seq_len: int = DataConfig.seq_len
    """Positions per row."""
    batch_size: int = DataConfig.batch_size
    """Rows per batch: those that --mask draws."""
    layout: Literal["concatenated", "documents"] = DataConfig.layout
    """Cut chunks from the documents end to end, or never across a document's end."""
    joint_budget: bool = False
    """Let inputs and targets share the row, instead of half a row each."""
    skip_undecodable: bool = False
    """Leave out text that is not UTF-8, instead of stopping."""
    tokenizer: str = str(SHIPPED)
    """Checkpoint folder, folder of shards, or SentencePiece model."""
    rows: int = 2
    """Rows to print."""
    count: int = 1000
    """Rows to count."""
    mask: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """PNG to draw the masks to."""
    seed: int = 0
    """Decides order and noise."""

    def __call__(self) -> None:
        config = DataConfig(
            self.data,
            self.mixture,
            self.seq_len,
            self.batch_size,
            layout=self.layout,
            joint_budget=self.joint_budget,
            skip_undecodable=self.skip_undecodable,
        )
        folders = built_folders(config.source)
        tokenizer = load_tokenizer(next(iter(folders), self.tokenizer))
        loader = Loader(open_source(config, tokenizer)[0], config, tokenizer.symbols, seed=self.seed)
        console = Console(highlight=False)
        legend = zip(("mode token", "inputs", "sentinels", "targets"), COLOURS, strict=True)
        console.print(Text.assemble(*((f"{name}  ", style) for name, style in legend)))
        for number in range(self.rows):
            console.print(row(loader, tokenizer, number))
        console.print(statistics_table(statistics(loader, self.count)))
        if self.mask is not None:
            save_mask(self.mask, loader)
            print(f"masks: {self.mask}")
