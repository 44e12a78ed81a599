"""The `upalm data` command."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from upalm.cli import data as show
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
    """Tokenise text into ArrayRecord shards. Run again, it goes on where it was interrupted."""

    source: tyro.conf.Positional[str]
    """`stdlib`, a file (.txt, .jsonl, .gz or .zst of them, .parquet, .arrow), or a folder of such files."""
    out: str
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
            texts = (d.text for d in sources.documents(self.source, skipped=skipped))
            tokenizer = SentencePiece.train(texts, self.vocab_size)
        with Count("tokenised", ("documents", "tokens")) as count:
            options = {"skip_undecodable": self.skip_undecodable, "progress": count.update}
            made = shards.build(self.source, self.out, tokenizer, **options)
        counts = ", ".join(f"{made.n_tokens(split):,} {split} tokens" for split in shards.SPLITS)
        print(f"{made.documents:,} documents, {counts}, {len(made.shards)} shards in {self.out}")
        if made.skipped:
            print(f"left out {len(made.skipped)} that are not UTF-8 (in manifest.json): {', '.join(made.skipped[:5])}")


@dataclass(frozen=True)
class Check:
    """Read every shard against its checksum."""

    folder: tyro.conf.Positional[str]
    """Made by `upalm data build`."""

    def __call__(self) -> None:
        for split in shards.SPLITS:
            found = shards.Shards(self.folder, split, load_tokenizer(self.folder).hash)
            found.check()
            print(f"{split}: {len(found.shards)} shards, {found.n_tokens:,} tokens: whole")


@dataclass(frozen=True)
class Show:
    """Print rows in colour and the counts of a mixture, and draw the attention mask of rows."""

    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: str = str(SHIPPED)
    """Checkpoint folder, folder of shards, or SentencePiece model."""
    rows: int = 2
    """Rows to print."""
    count: int = 1000
    """Rows to count."""
    mask: Path | None = None
    """PNG to draw the masks to."""
    seed: int = 0
    """Decides order and noise."""

    def __call__(self) -> None:
        folders = built_folders(self.data.source)
        tokenizer = load_tokenizer(next(iter(folders), self.tokenizer))
        loader = Loader(open_source(self.data, tokenizer)[0], self.data, tokenizer.symbols, seed=self.seed)
        console = Console(highlight=False)
        legend = zip(("mode token", "inputs", "sentinels", "targets"), show.COLOURS, strict=True)
        console.print(Text.assemble(*((f"{name}  ", style) for name, style in legend)))
        for number in range(self.rows):
            console.print(show.row(loader, tokenizer, number))
        console.print(show.statistics_table(statistics(loader, self.count)))
        if self.mask is not None:
            show.save_mask(self.mask, loader)
            print(f"masks: {self.mask}")


Command = (
    Annotated[Build, tyro.conf.subcommand("build")]
    | Annotated[Show, tyro.conf.subcommand("show")]
    | Annotated[Check, tyro.conf.subcommand("check")]
)


def main(arguments: list[str]) -> None:
    """Run a subcommand."""
    tyro.cli(Command, prog="upalm data", args=arguments)()
