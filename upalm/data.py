"""Text -> tokens -> UL2R rows -> batches. A batch is a pure function of (seed, step).

Dims: B batch rows, T positions.
"""

import bisect
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import grain
import numpy as np
from absl import flags

from upalm import text, ul2r
from upalm.batch import Batch
from upalm.shards import SPLITS, Shards, Tokens, encode, is_folder_of_shards, manifest_hash
from upalm.tokenizer import Symbols, Tokenizer

_WINDOW_BLOCKS = 64
_WINDOWS_HELD = 2
_SHORTEST_CHUNK = 8

Corpus = Tokens | Shards


@dataclass(frozen=True)
class DataConfig:
    """What the model is trained on."""

    source: str = text.STDLIB
    """`stdlib` (Python's own source files), a text file or a folder of them (see upalm.text), or a folder made by
    `upalm data build`. Several built folders are mixed by weight: `wiki=0.7,code=0.3`."""
    mixture: str = "ul2r"
    """Name of a mixture (ul2r, ul2r_eos, ul2r_split_x, ul2, prefix_lm, causal), or denoisers written as in Python:
    `SpanCorruption(name='r', mode='nlu', mean_span=3.0, corruption_rate=0.15), PrefixLM(name='s', mode='s2s')`."""
    seq_len: int = 256
    """Positions in a row."""
    batch_size: int = 16
    """Rows in a batch, of all processes together."""
    batch_ramp: tuple[tuple[int, int], ...] = ()
    """(step, rows) from which on a batch has that many rows; `batch_size` before. PaLM 540B: 512, then
    ((50000, 1024), (115000, 2048))."""
    layout: Literal["concatenated", "documents"] = "concatenated"
    """Chunks are cut from the documents end to end, as in the paper, or never reach over a document's end."""
    joint_budget: bool = False
    """Let inputs and targets share the row, instead of half a row each as in the paper."""
    skip_undecodable: bool = False
    """Leave out text that is not UTF-8, and count it, instead of stopping."""
    n_workers: int = 0
    """Loader processes; 0 is a thread. The batches are the same."""

    def __post_init__(self):
        ul2r.mixture(self.mixture)
        if self.seq_len < 8 or self.batch_size < 1 or self.n_workers < 0:
            raise ValueError(
                f"seq_len {self.seq_len}, batch_size {self.batch_size}, n_workers {self.n_workers}: "
                "expected at least 8, 1 and 0."
            )

        steps = [0, *(step for step, _ in self.batch_ramp)]
        if any(a >= b for a, b in pairwise(steps)) or any(rows < 1 for _, rows in self.batch_ramp):
            raise ValueError(f"batch_ramp {self.batch_ramp}: expected rising steps above 0, and at least 1 row.")

    def batch_sizes(self) -> list[int]:
        """All that there are, in order."""
        return [self.batch_size, *(rows for _, rows in self.batch_ramp)]

    def batch_size_at(self, step: int) -> int:
        """Rows in the batch of a step."""
        return [rows for first, rows in ((0, self.batch_size), *self.batch_ramp) if first <= step][-1]

    def rows_before(self, step: int) -> int:
        """Rows in the batches of all earlier steps."""
        edges = [0, *(first for first, _ in self.batch_ramp if first < step), step]
        return sum(n * (b - a) for n, (a, b) in zip(self.batch_sizes(), pairwise(edges), strict=False))

    def budget(self) -> ul2r.Budget:
        """How long segments may get."""
        return (ul2r.Budget.joint if self.joint_budget else ul2r.Budget.split)(self.seq_len)


# --- Sources --------------------------------------------------------------------------------------


class Weighted(NamedTuple):
    """A corpus, and its share of the rows."""

    corpus: Corpus
    weight: float = 1.0


def built_folders(source: str) -> dict[str, float]:
    """Folders of shards that a source names, with their weights; empty if it is text.

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
        try:
            weights[folder] = float(weight)
        except ValueError as e:
            raise ValueError(f"weight {weight!r} in {source!r}: expected folder=number,folder=number,...") from e
        if not weights[folder] > 0:
            raise ValueError(f"weight {weight} of {folder!r}: expected above 0.")
        if not is_folder_of_shards(folder):
            raise ValueError(f"no shards at {folder!r}: only folders made by `upalm data build` can be mixed.")
    return weights


def manifests(source: str) -> dict[str, str]:
    """SHA-256 of the manifest of each folder of shards that a source names: what was trained on, to the byte."""
    return {folder: manifest_hash(folder) for folder in built_folders(source)}


def open_source(config: DataConfig, tokenizer: Tokenizer) -> tuple[list[Weighted], list[Weighted]]:
    """Training and validation corpora. Text is tokenised now; shards must be of this tokenizer.

    Raises:
        ValueError: from `text.load` or `Shards`.
    """
    if folders := built_folders(config.source):
        train, validation = (
            [Weighted(Shards(folder, split, tokenizer.hash), weight) for folder, weight in folders.items()]
            for split in SPLITS
        )
        return train, validation
    corpus = text.load(config.source, skip_undecodable=config.skip_undecodable)
    if corpus.skipped:
        print(f"skipped {len(corpus.skipped)} that are not UTF-8: {', '.join(corpus.skipped[:5])} ...")
    return [Weighted(encode(tokenizer, corpus.train))], [Weighted(encode(tokenizer, corpus.validation))]


# --- Planning -------------------------------------------------------------------------------------


class Segment(NamedTuple):
    """A planned segment: which denoiser takes which tokens of a window's stream."""

    denoiser_id: int
    start: int
    end: int


class Plan(NamedTuple):
    """Rows of segments, in the order in which they are emitted."""

    segments: list[Segment]
    rows: list[tuple[int, int]]
    """First and last + 1 segment of each row."""


def plan_rows(
    pieces: Sequence[tuple[int, int]],
    segmenters: Sequence[ul2r.Segmenter],
    seq_len: int,
    weights: np.ndarray,
    rng: np.random.Generator,
) -> Plan:
    """Cut pieces of a stream into chunks that fill rows.

    How long a segment gets is known before its noise is drawn, so the last chunk of a row is cut to the room left,
    and the next row goes on where it ended: rows are full, and no token is dropped. A chunk is shorter than 8
    tokens only where its piece ends; a row ends rather than hold one.
    """
    longest, emitted = [s.longest_chunks for s in segmenters], [s.segment_lengths for s in segmenters]
    draws = _denoiser_ids(weights, rng)
    segments, rows, first, room, denoiser_id = [], [], 0, seq_len, next(draws)
    for start, end in pieces:
        while start < end:
            n = min(longest[denoiser_id][room], end - start)
            if n < _SHORTEST_CHUNK and n < end - start and room < seq_len:
                rows.append((first, len(segments)))  # the denoiser that was drawn begins the next row
                first, room = len(segments), seq_len
                continue
            segments.append(Segment(denoiser_id, start, start + n))
            room -= emitted[denoiser_id][n]
            start += n
            denoiser_id = next(draws)
    rows.append((first, len(segments)))
    return Plan(segments, [rows[i] for i in rng.permutation(len(rows))])  # else a batch is all of one document


def plan_pairs(pieces: Sequence[tuple[int, int]], segmenter: ul2r.Segmenter, seq_len: int) -> Plan:
    """One segment for each supervised example; a row ends where the next does not fit.

    Raises:
        ValueError: an example longer than a row.
    """
    extra = segmenter.segment_length(0)
    if too_long := [end - start + extra for start, end in pieces if end - start + extra > seq_len]:
        raise ValueError(
            f"{len(too_long)} of {len(pieces)} examples are longer than a row of {seq_len}, the longest has "
            f"{max(too_long)} tokens: use a longer seq_len, or shorten them."
        )
    segments, rows, first, room = [], [], 0, seq_len
    for start, end in pieces:
        if end - start + extra > room:
            rows.append((first, len(segments)))
            first, room = len(segments), seq_len
        segments.append(Segment(0, start, end))
        room -= end - start + extra
    return Plan(segments, [*rows, (first, len(segments))])


def _denoiser_ids(weights: np.ndarray, rng: np.random.Generator) -> Iterator[int]:
    cumulative = np.cumsum(weights) / np.sum(weights)
    while True:
        yield from np.searchsorted(cumulative, rng.random(1024), side="right").tolist()


# --- The loader -----------------------------------------------------------------------------------


class Loader:
    """Packs the epochs of tokenised corpora into rows; `batch(step)` finds any of them without making those before.

    An epoch's blocks are shuffled and taken by windows of about 4M tokens. A window's documents are shuffled, joined,
    and cut into rows by `plan_rows`, which needs no more than their lengths; then the rows are shuffled. Noise comes
    from (seed, corpus, row): fresh in every epoch, and the same for every number of processes and workers.

    Args:
        source: a corpus, or several with weights, whose rows are then interleaved evenly.
        config: batch and mixture.
        symbols: of the tokenizer.
        seed: decides order and noise.
        rows: of a batch, those that this process makes, by batch size; all without it.
        skips: (step, batches): from that step on, so many batches more are left out.

    Raises:
        ValueError: an empty corpus, or what `ul2r.Segmenter` refuses; and when a row is made, a text with sentinels in
            it.
    """

    def __init__(
        self,
        source: Corpus | Sequence[Weighted],
        config: DataConfig,
        symbols: Symbols,
        *,
        seed: int,
        rows: Mapping[int, np.ndarray] | None = None,
        skips: Sequence[tuple[int, int]] = (),
    ):
        weighted = [Weighted(source)] if isinstance(source, (Tokens, Shards)) else list(source)
        self.corpora = [corpus for corpus, _ in weighted]
        for corpus in self.corpora:
            if corpus.n_tokens < 2:
                raise ValueError(f"the corpus has {corpus.n_tokens} tokens: expected at least 2.")
        if len({corpus.is_supervised for corpus in self.corpora}) > 1:
            raise ValueError("plain text and (inputs, targets) corpora are mixed: train on one kind at a time.")
        if not 0 <= seed < 1 << 64:
            raise ValueError(f"seed is {seed}, expected 0 to 2^64 - 1.")
        self.config, self.seed, self.rows, self.skips = config, seed, rows, tuple(skips)
        self.mixture = ul2r.SUPERVISED if self.corpora[0].is_supervised else ul2r.mixture(config.mixture)
        self.segmenters = [ul2r.Segmenter(d, config.budget(), symbols) for d in self.mixture]
        self._sentinels = set(symbols.sentinels)
        self._interleaved = _interleaved([w for _, w in weighted])
        self._first_rows = [[0] for _ in weighted]  # of each window planned so far, by corpus
        self._windows: dict[tuple[int, int], tuple[Tokens, Plan]] = {}

    def _blocks(self, corpus_id: int, window: int) -> np.ndarray:
        """Blocks of a window; windows are counted on through the epochs."""
        n = len(self.corpora[corpus_id].block_tokens)
        epoch, place = divmod(window, self.windows_per_epoch(corpus_id))
        order = np.random.default_rng([self.seed, corpus_id, epoch, 0]).permutation(n)
        return order[place * _WINDOW_BLOCKS : (place + 1) * _WINDOW_BLOCKS]

    def windows_per_epoch(self, corpus_id: int = 0) -> int:
        """Windows that an epoch of a corpus is taken by."""
        return math.ceil(len(self.corpora[corpus_id].block_tokens) / _WINDOW_BLOCKS)

    def plan(self, corpus_id: int, window: int) -> tuple[Plan, np.ndarray]:
        """The rows of a window, and the order of its documents; from lengths alone."""
        rng = np.random.default_rng([self.seed, corpus_id, window, 1])
        lengths = self.corpora[corpus_id].block_lengths(self._blocks(corpus_id, window))
        order = rng.permutation(len(lengths))
        edges = np.concatenate([[0], np.cumsum(lengths[order])]).tolist()
        if self.corpora[corpus_id].is_supervised:
            return plan_pairs(list(pairwise(edges)), self.segmenters[0], self.config.seq_len), order
        pieces = [(0, edges[-1])] if self.config.layout == "concatenated" else list(pairwise(edges))
        weights = np.array([d.weight for d in self.mixture])
        return plan_rows(pieces, self.segmenters, self.config.seq_len, weights, rng), order

    def window(self, corpus_id: int, window: int) -> tuple[Tokens, Plan]:
        """The documents of a window in their order, and its rows."""
        key = corpus_id, window
        if key not in self._windows:
            plan, order = self.plan(corpus_id, window)
            tokens = self.corpora[corpus_id].read(self._blocks(corpus_id, window)).reordered(order)
            self._refuse_sentinels(tokens)
            while len(self._windows) >= _WINDOWS_HELD * len(self.corpora):
                self._windows.pop(next(iter(self._windows)), None)  # the oldest
            self._windows[key] = tokens, plan
        return self._windows[key]

    def _refuse_sentinels(self, tokens: Tokens) -> None:
        """Text that this project's tokenizer made has none; supervised targets may."""
        if self._sentinels and not tokens.is_supervised:
            found = np.flatnonzero((tokens.ids >= min(self._sentinels)) & (tokens.ids <= max(self._sentinels)))
            if bad := sorted(set(tokens.ids[found].tolist()) & self._sentinels):
                raise ValueError(
                    f"the text holds sentinels ({bad[:3]}, {len(found)} tokens): they mark gaps and nothing else. "
                    "Tokenise it with upalm.tokenizer.Tokenizer.encode, which spells them in bytes."
                )

    def _find(self, row: int) -> tuple[int, int, int]:
        """Corpus, window, and place in it, of a row counted from the beginning of training."""
        corpus_id, row = self._interleaved[row] if self._interleaved is not None else (0, row)
        first_rows = self._first_rows[corpus_id]
        while row >= first_rows[-1]:
            plan, _ = self.plan(corpus_id, len(first_rows) - 1)
            first_rows.append(first_rows[-1] + len(plan.rows))
        window = bisect.bisect_right(first_rows, row) - 1
        return corpus_id, window, row - first_rows[window]

    def segments(self, row: int) -> Iterator[tuple[Segment, ul2r.Example]]:
        """The denoised examples of a row, each with its plan."""
        return self._segments(row, self._noise())

    def _noise(self) -> list["_Noise"]:
        """Of each corpus. A thread makes its own."""
        return [_Noise(np.array([self.seed, corpus_id], np.uint64)) for corpus_id in range(len(self.corpora))]

    def _segments(self, row: int, noise: list["_Noise"]) -> Iterator[tuple[Segment, ul2r.Example]]:
        corpus_id, window, place = self._find(row)
        tokens, plan = self.window(corpus_id, window)
        rng = noise[corpus_id](row)
        for segment in plan.segments[slice(*plan.rows[place])]:
            chunk = tokens.ids[segment.start : segment.end]
            segmenter = self.segmenters[segment.denoiser_id]
            if tokens.n_inputs is None:
                yield segment, segmenter(chunk, rng)
            else:
                n = int(tokens.n_inputs[np.searchsorted(tokens.offsets, segment.start, side="right") - 1])
                yield segment, segmenter.framed(ul2r.Example(chunk[:n], chunk[n:]))

    def batch(self, step: int) -> Batch:
        """This process's rows of a step, [rows, T]."""
        size, first = self.config.batch_size_at(step), self.first_row(step)
        numbers = np.arange(size) if self.rows is None else self.rows[size]
        batch, noise = Batch.empty(len(numbers), self.config.seq_len), self._noise()
        for b, number in enumerate((first + numbers).tolist()):
            row, at = Batch(*(x[b] for x in batch)), 0
            for i, (segment, example) in enumerate(self._segments(number, noise)):
                at = self.segmenters[segment.denoiser_id].write(row, at, example, i + 1, segment.denoiser_id)
        return batch

    def first_row(self, step: int) -> int:
        """The first row of a step's batch, counted from the beginning of training."""
        skipped = sum(n * self.config.batch_size_at(at) for at, n in self.skips if at <= step)
        return self.config.rows_before(step) + skipped

    def batches(self, first_step: int, n_steps: int) -> Iterator[Batch]:
        """Batches of `first_step` to `n_steps`, made by Grain ahead of their use. Its state is the step."""
        return iter(self.dataset(first_step, n_steps))

    def dataset(self, first_step: int, n_steps: int) -> grain.IterDataset:
        """The same as a Grain dataset, one element a batch."""
        steps = grain.MapDataset.range(first_step, n_steps).map(self.batch)
        if not self.config.n_workers:
            return steps.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4))
        if not flags.FLAGS.is_parsed():
            flags.FLAGS([sys.argv[0]])  # Grain's workers read absl's flags, which only absl's own programs parse
        options = grain.MultiprocessingOptions(num_workers=self.config.n_workers, per_worker_buffer_size=8)
        unthreaded = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        return steps.map(Batch.packed).to_iter_dataset(unthreaded).mp_prefetch(options).map(Batch.unpacked)


class _Noise:
    """Philox finds any of its streams at once: (seed, corpus) is the key, the row a place in the counter."""

    def __init__(self, key: np.ndarray):
        self._philox = np.random.Philox(key=key)
        self._generator, self._state = np.random.Generator(self._philox), self._philox.state

    def __call__(self, row: int) -> np.random.Generator:
        """The generator of a row; valid until the next is asked for."""
        self._state["state"]["counter"][2] = row
        self._philox.state = self._state  # an eighth of the time that a new generator takes
        return self._generator


def _interleaved(weights: Sequence[float]) -> Any:
    """Row -> (corpus, row of that corpus), by weight; Grain finds any in constant time. None for one corpus."""
    if len(weights) == 1:
        return None
    endless = 1 << 40
    rows = [grain.MapDataset.range(endless).map(lambda row, corpus_id=i: (corpus_id, row)) for i in range(len(weights))]
    return grain.MapDataset.mix(rows, weights=weights)


# --- Statistics -----------------------------------------------------------------------------------


class DenoiserCounts(NamedTuple):
    """What a denoiser made of some rows."""

    name: str
    examples: int
    source_tokens: int
    loss_tokens: int
    spans: int


class Statistics(NamedTuple):
    """What is in some rows."""

    rows: int
    positions: int
    padding: int
    denoisers: list[DenoiserCounts]

    @property
    def fill(self) -> float:
        """Share of positions that are not padding."""
        return 1 - self.padding / self.positions


def statistics(loader: Loader, n_rows: int) -> Statistics:
    """Count the first `n_rows` rows."""
    counts = {i: [0, 0, 0, 0] for i in range(len(loader.mixture))}
    filled = 0
    for row in range(n_rows):
        for segment, example in loader.segments(row):
            n_sentinels = loader.mixture[segment.denoiser_id].n_sentinels(segment.end - segment.start)
            new = (1, segment.end - segment.start, len(example.targets), n_sentinels)
            counts[segment.denoiser_id] = [a + b for a, b in zip(counts[segment.denoiser_id], new, strict=True)]
            filled += len(example.inputs) + len(example.targets)
    positions = n_rows * loader.config.seq_len
    names = [d.name for d in loader.mixture]
    return Statistics(n_rows, positions, positions - filled, [DenoiserCounts(names[i], *c) for i, c in counts.items()])
