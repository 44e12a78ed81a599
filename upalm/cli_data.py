"""The `upalm data` command."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.text import Text

from upalm import shards, show, text
from upalm.data import DataConfig, Loader, built_folders, open_source, statistics
from upalm.metrics import Count
from upalm.tokenizer import SentencePiece
from upalm.tokenizer_json import has_tokenizer, load_tokenizer

SHIPPED = Path(__file__).parent / "assets" / "palm_tiny"


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
            texts = (d.text for d in text.documents(self.source, skipped=skipped))
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
