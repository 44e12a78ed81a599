"""Grain loader: any batch is a pure function of (seed, step).

Dims: B batch rows, T positions.
"""

import bisect
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import grain
import numpy as np
from absl import flags

from upalm import ul2r
from upalm.data.config import Corpus, DataConfig, Weighted
from upalm.data.packing import RowPlan, Segment, check_pairs, plan_pairs, plan_rows
from upalm.data.shards import Shards
from upalm.data.tokens import Tokens
from upalm.ul2r.rows import Batch
from upalm.ul2r.symbols import Symbols

WINDOW_BLOCKS = 64
"""Blocks of about 64 Ki tokens that are shuffled together: 4M tokens."""

WINDOWS_IN_MEMORY = 2
"""Windows of a corpus that stay in memory."""


class Loader:
    """Packs epochs of tokenised corpora into rows; `batch(step)` builds any batch without those before it.

    The blocks of an epoch are shuffled and taken in windows of about 4M tokens. The documents of a window are
    shuffled, joined, and cut into rows by `plan_rows`, which needs only their lengths; then the rows are shuffled.
    Noise comes from (seed, corpus, row): fresh in every epoch, and the same for every number of processes and workers.

    Args:
        source: a corpus, or several with weights, whose rows are then interleaved evenly.
        config: batch and mixture.
        symbols: those of the tokenizer.
        seed: decides order and noise; 0 to 2^64 - 1.
        rows: the rows of a batch that this process builds, by batch size. Without it, this process builds all.
        skips: (step, batches) pairs: from that step on, that many more batches are left out.

    Raises:
        ValueError: an empty corpus, supervised examples longer than a row, or a denoiser that `ul2r.Segmenter`
            refuses. When a row is built: text that holds sentinels, or a damaged shard.
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
        if not isinstance(seed, int | np.integer) or not 0 <= seed < 1 << 64:
            raise ValueError(f"seed is {seed}, expected 0 to 2^64 - 1.")
        self.config, self.seed, self.rows, self.skips = config, seed, rows, tuple(skips)
        self.mixture = ul2r.SUPERVISED if self.corpora[0].is_supervised else ul2r.mixture(config.mixture)
        self.segmenters = [ul2r.Segmenter(d, config.budget(), symbols) for d in self.mixture]
        if self.corpora[0].is_supervised:  # all at once, as a window may come up hours later
            lengths = [corpus.block_lengths(np.arange(len(corpus.block_tokens))) for corpus in self.corpora]
            check_pairs(np.concatenate(lengths), self.segmenters[0], config.seq_len)
        self._sentinels = set(symbols.sentinels)
        self._interleaved = _interleave([w for _, w in weighted])
        self._first_rows = [[0] for _ in weighted]  # first row of each window planned so far, by corpus
        self._windows: dict[tuple[int, int], tuple[Tokens, RowPlan]] = {}

    def _blocks(self, corpus_id: int, window: int) -> np.ndarray:
        """Blocks of a window; windows are numbered through all epochs."""
        n = len(self.corpora[corpus_id].block_tokens)
        epoch, place = divmod(window, self.windows_per_epoch(corpus_id))
        order = np.random.default_rng([self.seed, corpus_id, epoch, 0]).permutation(n)
        return order[place * WINDOW_BLOCKS : (place + 1) * WINDOW_BLOCKS]

    def windows_per_epoch(self, corpus_id: int = 0) -> int:
        """Windows in an epoch of a corpus."""
        return math.ceil(len(self.corpora[corpus_id].block_tokens) / WINDOW_BLOCKS)

    def plan(self, corpus_id: int, window: int) -> tuple[RowPlan, np.ndarray]:
        """Plan the rows of a window and the order of its documents, from lengths alone."""
        rng = np.random.default_rng([self.seed, corpus_id, window, 1])
        lengths = self.corpora[corpus_id].block_lengths(self._blocks(corpus_id, window))
        order = rng.permutation(len(lengths))
        edges = np.concatenate([[0], np.cumsum(lengths[order])]).tolist()
        if self.corpora[corpus_id].is_supervised:
            return plan_pairs(list(pairwise(edges)), self.segmenters[0], self.config.seq_len), order
        pieces = [(0, edges[-1])] if self.config.layout == "concatenated" else list(pairwise(edges))
        weights = np.array([d.weight for d in self.mixture])
        return plan_rows(pieces, self.segmenters, self.config.seq_len, weights, rng), order

    def window(self, corpus_id: int, window: int) -> tuple[Tokens, RowPlan]:
        """Return the documents of a window in their order, and its rows."""
        key = corpus_id, window
        if key not in self._windows:
            plan, order = self.plan(corpus_id, window)
            tokens = self.corpora[corpus_id].read(self._blocks(corpus_id, window)).reorder(order)
            self._refuse_sentinels(tokens)
            while len(self._windows) >= WINDOWS_IN_MEMORY * len(self.corpora):
                self._windows.pop(next(iter(self._windows)), None)  # the oldest
            self._windows[key] = tokens, plan
        return self._windows[key]

    def _refuse_sentinels(self, tokens: Tokens) -> None:
        """Refuse sentinels in plain text, which `Tokenizer.encode` never makes; supervised examples may hold them."""
        if self._sentinels and not tokens.is_supervised:
            in_range = (tokens.ids >= min(self._sentinels)) & (tokens.ids <= max(self._sentinels))
            candidates = tokens.ids[in_range].tolist()
            if bad := sorted(set(candidates) & self._sentinels):
                raise ValueError(
                    f"the text holds sentinels ({bad[:3]}, {len(candidates)} tokens): they mark gaps and nothing else. "
                    "Tokenise it with upalm.data.Tokenizer.encode, which spells them in bytes."
                )

    def _find(self, row: int) -> tuple[int, int, int]:
        """Find corpus, window and place in the window of a row, numbered from the start of training."""
        corpus_id, row = self._interleaved[row] if self._interleaved is not None else (0, row)
        first_rows = self._first_rows[corpus_id]
        while row >= first_rows[-1]:
            plan, _ = self.plan(corpus_id, len(first_rows) - 1)
            first_rows.append(first_rows[-1] + len(plan.rows))
        window = bisect.bisect_right(first_rows, row) - 1
        return corpus_id, window, row - first_rows[window]

    def segments(self, row: int) -> Iterator[tuple[Segment, ul2r.Example]]:
        """Return the denoised examples of a row, each with its plan."""
        return self._segments(row, self._noise())

    def _noise(self) -> list["_Noise"]:
        """Build the noise of each corpus; every thread needs its own."""
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
                yield segment, segmenter.frame(ul2r.Example(chunk[:n], chunk[n:]))

    def batch(self, step: int) -> Batch:
        """Build this process's rows of a step, [rows, T]."""
        if step < 0:
            raise ValueError(f"step is {step}, expected at least 0.")
        size, first = self.config.batch_size_at(step), self.first_row(step)
        numbers = np.arange(size) if self.rows is None else self.rows[size]
        batch, noise = Batch.empty(len(numbers), self.config.seq_len), self._noise()
        for b, number in enumerate((first + numbers).tolist()):
            row, end = batch.row(b), 0
            for i, (segment, example) in enumerate(self._segments(number, noise)):
                end = self.segmenters[segment.denoiser_id].write(row, end, example, i + 1, segment.denoiser_id)
        return batch

    def first_row(self, step: int) -> int:
        """Return the first row of a step's batch, numbered from the start of training."""
        skipped = sum(n * self.config.batch_size_at(first) for first, n in self.skips if first <= step)
        return self.config.rows_before(step) + skipped

    def batches(self, first_step: int, n_steps: int) -> Iterator[Batch]:
        """Iterate over the batches of steps `first_step` to `n_steps` - 1, which Grain builds ahead of their use."""
        return iter(self.dataset(first_step, n_steps))

    def dataset(self, first_step: int, n_steps: int) -> grain.IterDataset:
        """Return the same batches as a Grain dataset, whose state is the step."""
        steps = grain.MapDataset.range(first_step, n_steps).map(self.batch)
        if not self.config.n_workers:
            return steps.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4))
        if not flags.FLAGS.is_parsed():
            flags.FLAGS([sys.argv[0]])  # Grain's workers read absl's flags, which only absl's own programs parse
        options = grain.MultiprocessingOptions(num_workers=self.config.n_workers, per_worker_buffer_size=8)
        unthreaded = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        return steps.map(Batch.pack).to_iter_dataset(unthreaded).mp_prefetch(options).map(Batch.unpack)


class _Noise:
    """Random generators by row. Philox reaches any stream at once: (seed, corpus) is the key, the row the counter."""

    def __init__(self, key: np.ndarray):
        self._philox = np.random.Philox(key=key)
        self._generator, self._state = np.random.Generator(self._philox), self._philox.state

    def __call__(self, row: int) -> np.random.Generator:
        """Return the generator of a row; it is valid until the next call."""
        self._state["state"]["counter"][2] = row
        self._philox.state = self._state  # an eighth of the time that a new generator takes
        return self._generator


def _interleave(weights: Sequence[float]) -> Any:
    """Map a row to (corpus, row of that corpus), by weight and in constant time; None for one corpus."""
    if len(weights) == 1:
        return None
    endless = 1 << 40
    rows = [grain.MapDataset.range(endless).map(lambda row, corpus_id=i: (corpus_id, row)) for i in range(len(weights))]
    return grain.MapDataset.mix(rows, weights=weights)


class DenoiserCounts(NamedTuple):
    """Counts of one denoiser over some rows."""

    name: str
    examples: int
    source_tokens: int
    loss_tokens: int
    spans: int


class Statistics(NamedTuple):
    """Counts over some rows: how full they are, and each denoiser's share."""

    rows: int
    positions: int
    padding: int
    denoisers: list[DenoiserCounts]

    @property
    def fill(self) -> float:
        """Share of positions that are not padding."""
        return 1 - self.padding / self.positions


def statistics(loader: Loader, n_rows: int) -> Statistics:
    """Count what the first `n_rows` rows hold."""
    counts, filled = np.zeros((len(loader.mixture), 4), int), 0
    for row in range(n_rows):
        for segment, example in loader.segments(row):
            n = segment.end - segment.start
            n_sentinels = loader.mixture[segment.denoiser_id].n_sentinels(n)
            counts[segment.denoiser_id] += (1, n, len(example.targets), n_sentinels)
            filled += len(example.inputs) + len(example.targets)
    positions = n_rows * loader.config.seq_len
    by_denoiser = [DenoiserCounts(d.name, *c) for d, c in zip(loader.mixture, counts.tolist(), strict=True)]
    return Statistics(n_rows, positions, positions - filled, by_denoiser)
