"""Batch: segments packed into decoder rows, shifted right, with prefix masks (U-PaLM section 2.2).

Dims: B batch rows, T positions.
"""

from typing import Any, NamedTuple

import numpy as np

from .denoisers import Denoiser
from .spans import Example
from .symbols import Symbols

MAX_NARROW_POSITIONS = np.iinfo(np.int16).max
"""Rows of up to 32,767 positions have int16 positions and segment ids; longer rows have int32."""


class Batch(NamedTuple):
    """Rows of packed segments: 18 bytes per token (22 in rows above 32,767 positions), never a T x T mask.

    One segment with inputs [7, 8, 5] and targets [3, 9], then one with [8, 4] and [6], in a row of 9:

        input_tokens    0 7 8 5 3 0 8 4 0      (shifted right inside each segment, BOS = 0)
        target_tokens   7 8 5 3 9 8 4 6 0
        loss_weights    0 0 0 1 1 0 0 1 0      (targets only)
        positions       0 1 2 3 4 0 1 2 0      (restart in every segment)
        segment_ids     1 1 1 1 1 2 2 2 0      (0 is padding)
        prefix_mask     1 1 1 1 0 1 1 1 0      (BOS and the inputs: seen in both directions)
        denoiser_ids    0 0 0 0 0 2 2 2 0      (index into the mixture; only for metrics)

    Paper: U-PaLM (arXiv:2210.11399) section 2.2 (join first, then pack).
    """

    input_tokens: Any  # int32[B, T]
    target_tokens: Any  # int32[B, T]
    loss_weights: Any  # float32[B, T]
    positions: Any  # int16[B, T], or int32
    segment_ids: Any  # int16[B, T], or int32
    prefix_mask: Any  # bool[B, T]
    denoiser_ids: Any  # int8[B, T]

    @classmethod
    def empty(cls, *shape: int) -> "Batch":
        """Return a batch that is all padding, to be filled in place."""
        return cls(*(np.zeros(shape, dtype) for dtype in _dtypes(shape[-1])))

    def row(self, i: int) -> "Batch":
        """Return views of row i, to read or to fill in place."""
        return Batch(*(x[i] for x in self))

    def pack(self) -> np.ndarray:
        """Join the fields into uint8[B, 18 T]: one array is cheaper to move between processes than seven."""
        return np.concatenate([np.ascontiguousarray(x).view(np.uint8) for x in self], axis=-1)

    @classmethod
    def unpack(cls, rows: np.ndarray) -> "Batch":
        """Split the bytes that `pack` joined into fields."""
        row_bytes = rows.shape[-1]
        seq_len = next(n for n in (row_bytes // 18, row_bytes // 22) if n * _bytes_per_token(n) == row_bytes)
        edges = np.cumsum([seq_len * dtype.itemsize for dtype in _dtypes(seq_len)])[:-1]
        fields = np.split(np.asarray(rows), edges, axis=-1)
        return cls(*(np.ascontiguousarray(x).view(dtype) for x, dtype in zip(fields, _dtypes(seq_len), strict=True)))

    def causal(self) -> "Batch":
        """Return the same rows under a plain causal mask."""
        return self._replace(prefix_mask=self.prefix_mask & False)


def _dtypes(seq_len: int) -> list[np.dtype]:
    count = np.int16 if seq_len <= MAX_NARROW_POSITIONS else np.int32
    return [np.dtype(x) for x in (np.int32, np.int32, np.float32, count, count, np.bool_, np.int8)]


def _bytes_per_token(seq_len: int) -> int:
    return sum(dtype.itemsize for dtype in _dtypes(seq_len))


class Budget(NamedTuple):
    """The longest inputs, targets and whole segment in positions, mode token and EOS included."""

    inputs: int
    targets: int
    total: int

    @classmethod
    def split(cls, seq_len: int) -> "Budget":
        """Half a row each for inputs and targets: the paper's 1024 + 1024."""
        return cls(seq_len // 2, seq_len // 2, seq_len)

    @classmethod
    def joint(cls, seq_len: int) -> "Budget":
        """Inputs and targets share the row."""
        return cls(seq_len, seq_len, seq_len)


class Segmenter:
    """One denoiser under a budget: turns chunks into segments whose lengths are known before any sampling.

    Raises:
        ValueError: no chunk of two tokens fits, or the longest chunk needs more sentinels than the vocabulary has.
    """

    def __init__(self, denoiser: Denoiser, budget: Budget, symbols: Symbols):
        self.denoiser, self.symbols = denoiser, symbols
        self.mode_ids = np.asarray(symbols.modes.get(denoiser.mode, ()), np.int32)
        self.eos_ids = np.asarray([symbols.eos_id][: denoiser.ends_with_eos], np.int32)
        self.inputs_eos_ids = np.asarray([symbols.eos_id][: denoiser.inputs_eos], np.int32)
        n = 0
        while self._fits(n + 1, budget):
            n += 1
        if n < 2:
            raise ValueError(
                f"denoiser {denoiser.name!r} does not fit: with its mode token and EOS not even two tokens "
                f"have room in {budget.inputs} inputs, {budget.targets} targets, {budget.total} in all. "
                "Use a longer seq_len."
            )
        if denoiser.n_sentinels(n) > len(symbols.sentinels):
            raise ValueError(
                f"denoiser {denoiser.name!r} needs {denoiser.n_sentinels(n)} sentinels for chunks of {n} "
                f"tokens, the vocabulary has {len(symbols.sentinels)}: shorten seq_len or set max_spans."
            )
        self.segment_lengths = [self.segment_length(i) for i in range(n + 1)]
        """`segment_lengths[n]`: positions that a chunk of n tokens takes."""
        # the running maximum: a denoiser of yours may need less room for more tokens
        room_needed = np.maximum.accumulate(self.segment_lengths)
        longest = np.searchsorted(room_needed, np.arange(budget.total + 1), side="right") - 1
        self.longest_chunks = np.maximum(longest, 0).tolist()
        """`longest_chunks[room]`: the longest chunk that fits in `room` positions, or 0."""

    def segment_length(self, n_tokens: int) -> int:
        """Return the positions that a chunk takes: mode token, tokens, each sentinel twice, EOS."""
        n_added = len(self.mode_ids) + len(self.inputs_eos_ids) + len(self.eos_ids)
        return n_tokens + 2 * self.denoiser.n_sentinels(n_tokens) + n_added

    def _fits(self, n_tokens: int, budget: Budget) -> bool:
        n_inputs, n_targets = self.denoiser.lengths(n_tokens)
        n_inputs += len(self.mode_ids) + len(self.inputs_eos_ids)
        n_targets += len(self.eos_ids)
        # without inputs, the targets have the whole row
        halves_fit = n_inputs == 0 or (n_inputs <= budget.inputs and n_targets <= budget.targets)
        return halves_fit and self.segment_length(n_tokens) <= budget.total

    def __call__(self, tokens: np.ndarray, rng: np.random.Generator) -> Example:
        """Denoise a chunk and frame it.

        Raises:
            ValueError: the denoiser gives more or fewer tokens than it says, or others than integers.
        """
        inputs, targets = self.denoiser(tokens, rng, self.symbols)
        n, n_promised = len(inputs) + len(targets), len(tokens) + 2 * self.denoiser.n_sentinels(len(tokens))
        if n != n_promised or inputs.dtype.kind not in "iu" or targets.dtype.kind not in "iu":
            raise ValueError(
                f"denoiser {self.denoiser.name!r} makes {n} tokens of {inputs.dtype} and {targets.dtype} from "
                f"{len(tokens)}, expected {n_promised} integers: its inputs and targets hold every token once, and "
                "each of the n_sentinels(length) sentinels twice."
            )
        return self.frame(Example(inputs, targets))

    def frame(self, example: Example) -> Example:
        """Add mode token and EOS: inputs end with EOS if the denoiser says so, targets as a rule."""
        inputs = (self.mode_ids, example.inputs, self.inputs_eos_ids)
        return Example(np.concatenate(inputs), np.concatenate((example.targets, self.eos_ids)))

    def write(self, row: Batch, start: int, example: Example, segment_id: int, denoiser_id: int) -> int:
        """Call `write_segment` with this vocabulary's BOS."""
        return write_segment(row, start, example, segment_id, denoiser_id, self.symbols.bos_id)


def write_segment(row: Batch, start: int, example: Example, segment_id: int, denoiser_id: int, bos_id: int) -> int:
    """Write a segment into a row of a `Batch` from position `start` on; return the position after it.

    The shift to the right happens here and nowhere else.

    Paper: U-PaLM section 2.2: inputs and targets are joined first, then packed.
    """
    n_inputs = len(example.inputs)
    end = start + n_inputs + len(example.targets)
    np.concatenate(example, out=row.target_tokens[start:end], casting="same_kind")
    row.input_tokens[start] = bos_id
    row.input_tokens[start + 1 : end] = row.target_tokens[start : end - 1]
    row.loss_weights[start + n_inputs : end] = 1
    row.positions[start:end] = np.arange(end - start)
    row.segment_ids[start:end] = segment_id
    row.prefix_mask[start : min(start + n_inputs + 1, end)] = True
    row.denoiser_ids[start:end] = denoiser_id
    return end
