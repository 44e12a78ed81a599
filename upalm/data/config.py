"""DataConfig, and the corpora that it names."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import tyro

from upalm import ul2r
from upalm.checks import is_whole
from upalm.data import sources
from upalm.data.shards import SPLITS, Shards, is_folder_of_shards, manifest_hash
from upalm.data.tokenizer import Tokenizer
from upalm.data.tokens import BUILD_APART, Tokens, encode, spelling_problem

Corpus = Tokens | Shards
"""Tokenised documents, in memory or on disk."""

RECIPE_OPTIONS = ("--data.include", "--data.skip-undecodable")
"""How the command line of a recipe names the settings of text."""

MIN_SHARE = 1e-6
"""The least share of rows that a corpus can have; a smaller one would get none."""


@dataclass(frozen=True)
class DataConfig:
    """Text, mixture and batches that a model is trained on."""

    source: Annotated[str, tyro.conf.arg(aliases=("--data",))] = sources.STDLIB
    """`stdlib` (Python's own source files), `installed` (and those of the packages that upalm needs), a text file, a
    folder of text files, or a folder that `upalm data build` wrote. Several built folders are mixed by weight:
    `wiki=0.7,code=0.3`."""
    mixture: Annotated[str | ul2r.Mixture, tyro.conf.arg(constructor=str)] = "ul2r"
    """Name of a mixture: ul2r (the paper's), ul2r_infill (for text after a gap: EOS ends the inputs, and gaps lie
    anywhere), ul2r_gaps (missing lines and few gaps beside these, in chunks of random length, so that answers end by
    themselves), ul2r_eos, ul2r_split_x, ul2, prefix_lm, causal; or denoisers as in Python: `SpanCorruption(name='r',
    mode='nlu', mean_span=3.0, corruption_rate=0.15), PrefixLM(name='s', mode='s2s')`. A tuple of them is kept as its
    text."""
    seq_len: int = 256
    """Positions per row."""
    batch_size: int = 16
    """Rows per batch, over all processes together."""
    batch_ramp: tuple[tuple[int, int], ...] = ()
    """(step, rows): from that step on, a batch has that many rows; before the first, `batch_size`. PaLM 540B: 512,
    then ((50000, 1024), (115000, 2048))."""
    layout: Literal["concatenated", "documents"] = "concatenated"
    """Cut chunks from the documents end to end, as in the paper, or never across the end of a document."""
    joint_budget: bool = False
    """Let inputs and targets share the row, instead of half a row each as in the paper."""
    include: tuple[str, ...] = ()
    """Patterns such as `*.py`: exactly the matching files of a folder are read, as plain text if their kind is not
    known. Without any: .txt, .jsonl, .parquet and .arrow."""
    skip_undecodable: bool = False
    """Leave out text that is not UTF-8, or that the tokenizer cannot spell, and list it, instead of stopping: rows of
    JSON and tables alone, files of plain text whole."""
    n_workers: int = 0
    """Loader processes; 0 is a thread. The batches are the same."""

    def __post_init__(self):
        denoisers = ul2r.mixture(self.mixture)
        if not isinstance(self.mixture, str):
            object.__setattr__(self, "mixture", ul2r.mixture_text(denoisers))
        if isinstance(self.source, os.PathLike):
            object.__setattr__(self, "source", str(self.source))
        is_given = self.source is not tyro.MISSING  # of a recipe, whose user gives it
        if is_given and not (isinstance(self.source, str) and self.source.strip()):
            raise ValueError(f"source is {self.source!r}, expected `stdlib`, a file or a folder.")
        for name, least in (("seq_len", 8), ("batch_size", 1), ("n_workers", 0)):
            if not is_whole(value := getattr(self, name)) or value < least:
                raise ValueError(f"{name} is {value!r}, expected a whole number of at least {least}.")
        if self.layout not in ("concatenated", "documents"):
            raise ValueError(f"layout is {self.layout!r}, expected 'concatenated' or 'documents'.")
        are_pairs = all(len(pair) == 2 and all(map(is_whole, pair)) for pair in self.batch_ramp)
        steps = [0, *(step for step, *_ in self.batch_ramp)]
        if not are_pairs or any(a >= b for a, b in pairwise(steps)) or any(rows < 1 for _, rows in self.batch_ramp):
            raise ValueError(f"batch_ramp {self.batch_ramp}: expected (step, rows), rising steps and at least 1 row.")

    def batch_sizes(self) -> list[int]:
        """Return every batch size of the ramp, in order."""
        return [self.batch_size, *(rows for _, rows in self.batch_ramp)]

    def batch_size_at(self, step: int) -> int:
        """Return the rows in the batch of a step."""
        return [rows for first, rows in ((0, self.batch_size), *self.batch_ramp) if first <= step][-1]

    def rows_before(self, step: int) -> int:
        """Return the rows in the batches of all earlier steps."""
        edges = [0, *(first for first, _ in self.batch_ramp if first < step), step]
        return sum(n * (b - a) for n, (a, b) in zip(self.batch_sizes(), pairwise(edges), strict=False))

    def budget(self) -> ul2r.Budget:
        """Return how long segments may get."""
        return (ul2r.Budget.joint if self.joint_budget else ul2r.Budget.split)(self.seq_len)


def text_source(config: DataConfig, options: Sequence[str] = RECIPE_OPTIONS) -> sources.TextSource:
    """Find the text files of a configuration; `options` are those that hints may name."""
    return sources.TextSource(config.source, config.include, config.skip_undecodable, tuple(options))


class Weighted(NamedTuple):
    """A corpus, and its share of the rows."""

    corpus: Corpus
    weight: float = 1.0


def built_folders(source: str) -> dict[str, float]:
    """Return the folders of shards that a source names, with their weights; none if it is text.

    Raises:
        ValueError: a weight that is not above 0, or a folder that holds no shards.
    """
    if is_folder_of_shards(source):
        return {source: 1.0}
    if "=" not in source or Path(source).exists():
        return {}
    weights = {}
    for part in source.split(","):
        folder, _, weight = part.rpartition("=")
        if folder in weights:
            raise ValueError(f"{folder!r} stands twice in {source!r}: give it one weight.")
        try:
            weights[folder] = float(weight)
        except ValueError as e:
            raise ValueError(f"weight {weight!r} in {source!r}: expected folder=number,folder=number,...") from e
        if not 0 < weights[folder] < float("inf"):
            raise ValueError(f"weight {weight} of {folder!r}: expected above 0 and finite.")
        if not is_folder_of_shards(folder):
            raise ValueError(f"no shards at {folder!r}: only folders made by `upalm data build` can be mixed.")
    if min(weights.values()) < MIN_SHARE * sum(weights.values()):
        raise ValueError(f"weights in {source!r}: expected each at least a millionth of their sum.")
    return weights


def manifests(source: str) -> dict[str, str]:
    """Return the SHA-256 of the manifest of each folder of shards that a source names."""
    return {folder: manifest_hash(folder) for folder in built_folders(source)}


def open_source(
    config: DataConfig, tokenizer: Tokenizer, options: Sequence[str] = RECIPE_OPTIONS
) -> tuple[list[Weighted], list[Weighted]]:
    """Open the training and validation corpora of a source, tokenising text now.

    Args:
        config: source, and how it is read.
        tokenizer: the model's.
        options: options of the command in hand, which hints in errors may name.

    Raises:
        ValueError: a source that `TextSource` or `Shards` refuses, such as shards of another tokenizer.
    """
    if folders := built_folders(config.source):
        train, validation = (
            [Weighted(Shards(folder, split, *tokenizer.hashes), weight) for folder, weight in folders.items()]
            for split in SPLITS
        )
        return train, validation
    text = text_source(config, options)
    corpus = text.load(partial(spelling_problem, tokenizer))
    for note in text.notes():
        print(note)
    train, validation = encode(tokenizer, corpus.train), encode(tokenizer, corpus.validation)
    if train.is_supervised != validation.is_supervised:
        raise ValueError(f"{config.source!r} has both plain text and (inputs, targets) examples: {BUILD_APART}")
    return [Weighted(train)], [Weighted(validation)]
