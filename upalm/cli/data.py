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
from upalm.data.hf_tokenizer import load_tokenizer
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


def statistics_table(counted: Statistics) -> Table:
    """Shares of examples, source tokens and loss tokens by denoiser, and how full rows are."""
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
    """Largest vocabulary of the tokenizer that is trained on a sample of the text, if none is given."""
    include: tuple[str, ...] = ()
    """Patterns such as '*.py': exactly the matching files of a folder are read, as plain text if their kind is not
    known."""
    skip_undecodable: bool = False
    """Leave out text that is not UTF-8, and list it, instead of stopping."""

    def __call__(self) -> None:
        text = sources.TextSource(self.data, self.include, self.skip_undecodable, "--")
        tokenizer = self._tokenizer(text)
        trained_vocab_size = 0 if self.tokenizer is not None else self.vocab_size
        with Count("tokenised", ("documents", "tokens")) as count:
            manifest = shards.build(
                text, self.out, tokenizer, trained_vocab_size=trained_vocab_size, progress=count.update
            )
        counts = ", ".join(f"{manifest.n_tokens(split):,} {split} tokens" for split in shards.SPLITS)
        print(f"{manifest.documents:,} documents, {counts}, {len(manifest.shards)} shards in {self.out}")
        text.skipped = manifest.skipped
        for note in text.notes():
            print(f"{note} (all are listed in manifest.json)" if manifest.skipped else note)

    def _tokenizer(self, text: sources.TextSource) -> Tokenizer:
        """The one that is given, that of shards to resume, or one trained on the text."""
        if self.tokenizer is not None:
            return load_tokenizer(self.tokenizer)
        if shards.is_folder_of_shards(self.out):
            return load_tokenizer(self.out)
        tokenizer = SentencePiece.train(sources.sample(text.documents()), self.vocab_size, at_most=True)
        if tokenizer.vocab_size < self.vocab_size:
            print(f"the text supports a vocabulary of {tokenizer.vocab_size:,}, not of {self.vocab_size:,}")
        return tokenizer


@dataclass(frozen=True)
class Check:
    """Verify the checksum of every shard."""

    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """Folder that `upalm data build` wrote."""

    def __call__(self) -> None:
        tokenizer = load_tokenizer(self.data)
        for split in shards.SPLITS:
            corpus = shards.Shards(self.data, split, tokenizer.hash)
            corpus.check()
            print(f"{split}: {len(corpus.shards)} shards, {corpus.n_tokens:,} tokens: whole")


@dataclass(frozen=True)
class Show:
    """Print rows of a mixture in colour, with statistics."""

    data: options.Data = DataConfig.source
    """`stdlib`, text, or a folder that `upalm data build` wrote."""
    mixture: str = "ul2r"
    """Name of a mixture (ul2r, ul2r_eos, ul2r_split_x, ul2, prefix_lm, causal), or denoisers as in Python."""
    seq_len: int = DataConfig.seq_len
    """Positions per row."""
    batch_size: int = DataConfig.batch_size
    """Rows per batch: those that --mask draws."""
    layout: Literal["concatenated", "documents"] = DataConfig.layout
    """Cut chunks from the documents end to end, or never across a document's end."""
    joint_budget: bool = False
    """Let inputs and targets share the row, instead of half a row each."""
    include: tuple[str, ...] = ()
    """Patterns such as '*.py': exactly the matching files of a folder are read."""
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
            include=self.include,
            skip_undecodable=self.skip_undecodable,
        )
        folders = built_folders(config.source)
        tokenizer = load_tokenizer(next(iter(folders), self.tokenizer))
        loader = Loader(open_source(config, tokenizer, "--")[0], config, tokenizer.symbols, seed=self.seed)
        console = Console(highlight=False)
        legend = zip(("mode token", "inputs", "sentinels", "targets"), COLOURS, strict=True)
        console.print(Text.assemble(*((f"{name}  ", style) for name, style in legend)))
        for number in range(self.rows):
            console.print(row(loader, tokenizer, number))
        console.print(statistics_table(statistics(loader, self.count)))
        if self.mask is not None:
            save_mask(self.mask, loader)
            print(f"masks: {self.mask}")
