"""Text -> tokens -> UL2R rows -> batches. A batch is a pure function of (seed, step)."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import grain
import numpy as np

from upalm import ul2r
from upalm.batch import Batch
from upalm.tokenizer import EOS_ID, Symbols


@dataclass(frozen=True)
class DataConfig:
    """What the model is trained on."""

    source: str = "stdlib"
    """`stdlib` (Python's own source files), a .txt or .jsonl file, or a folder of them."""
    mixture: str = "ul2r"
    """Name of the mixture of denoisers: ul2r, ul2r_roll or causal."""
    seq_len: int = 256
    """Positions in a row."""
    batch_size: int = 16
    """Rows in a batch."""
    joint_budget: bool = False
    """Let inputs and targets share the row, instead of half a row each as in the paper."""
    skip_undecodable: bool = False
    """Leave out files that are not UTF-8, and count them, instead of stopping."""

    def __post_init__(self):
        if self.mixture not in ul2r.MIXTURES:
            raise ValueError(f"no mixture {self.mixture!r}: expected one of {sorted(ul2r.MIXTURES)}.")
        if self.seq_len < 8 or self.batch_size < 1:
            raise ValueError(f"seq_len {self.seq_len} and batch_size {self.batch_size}: at least 8 and 1.")

    def budget(self) -> ul2r.Budget:
        """How long segments may get."""
        return (ul2r.Budget.joint if self.joint_budget else ul2r.Budget.split)(self.seq_len)


class Tokens(NamedTuple):
    """Tokenised documents end to end: document i is `ids[offsets[i]:offsets[i + 1]]`."""

    ids: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, documents: list[list[int]]) -> "Tokens":
        """Concatenate, with an EOS after each document (PaLM's `[eod]`)."""
        lengths = [len(d) + 1 for d in documents]
        ids = np.empty(sum(lengths), np.int32)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        for document, start, end in zip(documents, offsets, offsets[1:], strict=False):
            ids[start : end - 1] = document
            ids[end - 1] = EOS_ID
        return cls(ids, offsets)

    def shuffled(self, seed: int, epoch: int) -> np.ndarray:
        """All tokens, documents in the order of this epoch."""
        order = np.random.default_rng([seed, epoch]).permutation(len(self.offsets) - 1)
        return np.concatenate([self.ids[self.offsets[i] : self.offsets[i + 1]] for i in order])


class Segment(NamedTuple):
    """A planned segment: which denoiser takes which tokens of the epoch's stream."""

    denoiser_id: int
    start: int
    end: int


class Loader:
    """Packs the epochs of a tokenised corpus into rows; `batch(step)` finds any of them without replaying.

    An epoch's documents are shuffled, joined, and cut into chunks by the mixture. How long a segment gets is
    known before its noise is drawn, so the plan fills rows exactly: the last chunk of a row is cut to the room
    left, and the next row goes on where it ended. No token of an epoch is dropped. Then the rows are shuffled.
    Noise comes from (seed, row), so it is fresh in every epoch and the same for every number of workers.
    """

    def __init__(self, tokens: Tokens, config: DataConfig, symbols: Symbols, *, seed: int):
        mixture = ul2r.MIXTURES[config.mixture]
        if len(tokens.ids) < 2:
            raise ValueError(f"the corpus has {len(tokens.ids)} tokens: expected at least 2.")
        self.tokens, self.config, self.seed = tokens, config, seed
        self.segmenters = [ul2r.Segmenter(d, config.budget(), symbols) for d in mixture]
        weights = np.cumsum([d.weight for d in mixture])
        self._cumulative_weights = weights / weights[-1]
        self._first_rows = [0]  # of each epoch known so far
        self._epoch = lru_cache(maxsize=2)(self._plan_epoch)

    def _plan_epoch(self, epoch: int) -> tuple[np.ndarray, list[list[Segment]]]:
        """The epoch's token stream and its rows, each a list of segments."""
        stream = self.tokens.shuffled(self.seed, epoch)
        rng = np.random.default_rng([self.seed, epoch, 1])
        rows, at = [], 0
        while at < len(stream):
            row, room = [], self.config.seq_len
            while at < len(stream):
                denoiser_id = int(np.searchsorted(self._cumulative_weights, rng.random(), side="right"))
                segmenter = self.segmenters[denoiser_id]
                n = min(segmenter.longest_chunk(room), len(stream) - at)
                if n == 0:
                    break
                row.append(Segment(denoiser_id, at, at + n))
                room, at = room - segmenter.segment_length(n), at + n
            rows.append(row)
        order = rng.permutation(len(rows))  # else a batch is all of one document
        return stream, [rows[i] for i in order]

    def _find(self, row: int) -> tuple[int, int]:
        """Epoch of a row, counted from the beginning of training, and its place there."""
        while row >= self._first_rows[-1]:
            self._first_rows.append(self._first_rows[-1] + len(self._epoch(len(self._first_rows) - 1)[1]))
        epoch = int(np.searchsorted(self._first_rows, row, side="right")) - 1
        return epoch, row - self._first_rows[epoch]

    def segments(self, row: int) -> Iterator[tuple[int, ul2r.Example]]:
        """The denoised examples of a row, each with the index of its denoiser."""
        epoch, place = self._find(row)
        stream, rows = self._epoch(epoch)
        rng = np.random.default_rng([self.seed, row, 2])
        for denoiser_id, start, end in rows[place]:
            yield denoiser_id, self.segmenters[denoiser_id](stream[start:end], rng)

    def batch(self, step: int) -> Batch:
        """The rows of a step, [B, T]."""
        batch = Batch.empty(self.config.batch_size, self.config.seq_len)
        for b in range(self.config.batch_size):
            row, at = Batch(*(x[b] for x in batch)), 0
            for i, (denoiser_id, example) in enumerate(self.segments(step * self.config.batch_size + b)):
                bos_id = self.segmenters[denoiser_id].symbols.bos_id
                at = ul2r.write_segment(row, at, example, i + 1, denoiser_id, bos_id)
        return batch

    def batches(self, first_step: int, n_steps: int) -> Iterator[Batch]:
        """Batches of `first_step` to `n_steps`, made by Grain ahead of their use."""
        steps = grain.MapDataset.range(first_step, n_steps).map(self.batch)
        return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)))
