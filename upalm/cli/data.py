"""`upalm data build`, `upalm data show` and `upalm data check`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from etils import epy

from upalm.checkpoints.shipped import PALM_TINY
from upalm.cli import options
from upalm.terminal import console

with epy.lazy_imports():  # once the options are read: some import JAX and matplotlib
    from upalm.checkpoints import lock
    from upalm.cli import rows
    from upalm.data import config, hf_tokenizer, loader, shards, sources
    from upalm.data import tokenizer as tokenizer_module
    from upalm.training import progress

VOCAB_SIZE = 32_000
MIN_VOCAB_SIZE, MAX_VOCAB_SIZE = 360, 1_000_000


@dataclass(frozen=True)
class Build:
    """Tokenise text into shards for training.

    The same command again resumes an interrupted build.
    """

    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """`stdlib` (Python's own source files), `installed` (and those of the packages that upalm needs), a file (.txt,
    .jsonl, .gz or .zst of them, .parquet, .arrow), or a folder of such files."""
    out: Annotated[str, tyro.conf.arg(metavar="FOLDER")]
    """Folder of the shards, on a disk or in a bucket (gs://...)."""
    tokenizer: Annotated[str | None, tyro.conf.arg(metavar="PATH")] = None
    """Checkpoint folder, folder of shards, or SentencePiece model; if none is given, one is trained on the text."""
    vocab_size: int = VOCAB_SIZE
    """Largest vocabulary of the tokenizer that is trained on a sample of the text."""
    include: tuple[str, ...] = ()
    """Patterns such as '*.py': exactly the matching files of a folder are read, as plain text if their kind is not
    known."""
    skip_undecodable: bool = False
    """Leave out text that is not UTF-8, or that the tokenizer cannot spell, and list it, instead of stopping: rows of
    JSON and tables alone, files of plain text whole."""

    def __post_init__(self):
        if not self.out.strip():
            raise ValueError("--out is empty, expected a folder.")
        if Path(self.out).is_file():
            raise ValueError(f"{self.out} is a file: choose another --out.")
        if self.tokenizer is not None and self.vocab_size != VOCAB_SIZE:
            raise ValueError("--vocab-size is of a tokenizer to be trained: give it or --tokenizer, not both.")
        if not MIN_VOCAB_SIZE <= self.vocab_size <= MAX_VOCAB_SIZE:
            raise ValueError(
                f"--vocab-size is {self.vocab_size}, expected {MIN_VOCAB_SIZE} (bytes, special ids and sentinels) to "
                f"{MAX_VOCAB_SIZE:,}."
            )

    def __call__(self) -> None:
        text = sources.TextSource(self.data, self.include, self.skip_undecodable, options.TEXT_OPTIONS)
        trained_vocab_size = 0 if self.tokenizer is not None else self.vocab_size
        with lock.hold(self.out), progress.Count("tokenised", ("documents", "tokens")) as count:
            manifest = shards.build(
                text, self.out, self._tokenizer(text), trained_vocab_size=trained_vocab_size, progress=count.update
            )
        counts = ", ".join(f"{manifest.n_tokens(split):,} {split} tokens" for split in shards.SPLITS)
        print(f"{manifest.documents:,} documents, {counts}, {len(manifest.shards)} shards in {self.out}")
        text.skipped = manifest.skipped
        for note in text.notes():
            print(f"{note} (all are listed in manifest.json)" if manifest.skipped else note)

    def _tokenizer(self, text: "sources.TextSource") -> "tokenizer_module.Tokenizer":
        """Open the given tokenizer or that of shards to resume, or train one on the text."""
        if self.tokenizer is not None:
            return hf_tokenizer.load_tokenizer(self.tokenizer)
        if shards.is_folder_of_shards(self.out):
            return hf_tokenizer.load_tokenizer(self.out)
        is_held_out = sources.choose_held_out(text.documents())
        pieces = sources.sample(text.documents(), is_held_out=is_held_out)
        try:
            trained = tokenizer_module.SentencePiece.train(pieces, self.vocab_size, at_most=True)
        except ValueError as e:
            raise ValueError(f"{e} Give more text, or the tokenizer of a checkpoint with --tokenizer.") from e
        if trained.vocab_size < self.vocab_size:
            print(f"the text supports a vocabulary of {trained.vocab_size:,}, not of {self.vocab_size:,}")
        return trained


@dataclass(frozen=True)
class Check:
    """Verify the checksum of every shard."""

    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """Folder that `upalm data build` wrote."""

    def __call__(self) -> None:
        shards.Manifest.read(self.data)  # first says what else a folder is
        hashes = hf_tokenizer.load_tokenizer(self.data).hashes
        for split in shards.SPLITS:
            corpus = shards.Shards(self.data, split, *hashes)
            corpus.check()
            print(f"{split}: {len(corpus.shards)} shards, {corpus.n_tokens:,} tokens: whole")


@dataclass(frozen=True)
class Show:
    """Print rows of a mixture in colour, with statistics."""

    data: options.Data = "stdlib"
    """`stdlib`, text, or a folder that `upalm data build` wrote."""
    mixture: str = "ul2r"
    """Name of a mixture (ul2r, ul2r_infill, ul2r_gaps, ul2r_eos, ul2r_split_x, ul2, prefix_lm, causal), or denoisers in
    Python."""
    seq_len: int = 256
    """Positions per row."""
    batch_size: int = 16
    """Rows per batch: those that --mask draws."""
    layout: Literal["concatenated", "documents"] = "concatenated"
    """Cut chunks from the documents end to end, or never across a document's end."""
    joint_budget: bool = False
    """Let inputs and targets share the row, instead of half a row each."""
    include: tuple[str, ...] = ()
    """Patterns such as '*.py': exactly the matching files of a folder are read."""
    skip_undecodable: bool = False
    """Leave out text that is not UTF-8, or that the tokenizer cannot spell, instead of stopping: rows of JSON and
    tables alone, files of plain text whole."""
    tokenizer: Annotated[str | None, tyro.conf.arg(metavar="PATH")] = None
    """Checkpoint folder, folder of shards, or SentencePiece model, for text; the shipped base's if none is given."""
    rows: int = 2
    """Rows to print."""
    count: int = 1000
    """Rows to count."""
    mask: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """PNG to draw the masks to."""
    seed: int = 0
    """Decides order and noise."""

    def __post_init__(self):
        if self.rows < 0 or self.count < 1:
            raise ValueError(f"--rows is {self.rows}, --count {self.count}: expected at least 0 and 1.")
        options.check_file("--mask", self.mask)

    def __call__(self) -> None:
        names = ("mixture", "seq_len", "batch_size", "layout", "joint_budget", "include", "skip_undecodable")
        settings = config.DataConfig(self.data, **{name: getattr(self, name) for name in names})
        folders = config.built_folders(settings.source)
        if folders and self.tokenizer is not None:
            raise ValueError(
                f"{next(iter(folders))} holds shards, and with them their tokenizer: leave out --tokenizer."
            )
        opened = hf_tokenizer.load_tokenizer(next(iter(folders), self.tokenizer or PALM_TINY))
        train, _ = config.open_source(settings, opened, options.TEXT_OPTIONS)
        packed = loader.Loader(train, settings, opened.symbols, seed=self.seed)
        output = console()
        output.print(rows.legend())
        for number in range(self.rows):
            output.print(rows.row(packed, opened, number))
        output.print(rows.statistics_table(loader.statistics(packed, self.count)))
        if self.mask is not None:
            rows.save_mask(self.mask, packed)
            print(f"masks: {self.mask}")
