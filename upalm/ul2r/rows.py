"""Batch: segments packed into decoder rows, shifted right, with prefix masks (U-PaLM section 2.2)."""

from typing import Any, NamedTuple

import numpy as np

from .denoisers import Denoiser
from .spans import Example
from .symbols import Symbols


class Batch(NamedTuple):
    """Rows of packed segments, 18 bytes a token; never a T x T mask.

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
    positions: Any  # int16[B, T]
    segment_ids: Any  # int16[B, T]
    prefix_mask: Any  # bool[B, T]
    denoiser_ids: Any  # int8[B, T]

    @classmethod
    def empty(cls, *shape: int) -> "Batch":
        """All padding, to be filled in place."""
        return cls(*(np.zeros(shape, dtype) for dtype in _DTYPES))

    def row(self, i: int) -> "Batch":
        """Views of one row, to read or to fill in place."""
        return Batch(*(x[i] for x in self))

    def packed(self) -> np.ndarray:
        """uint8[B, 18 T]: one array in place of seven, which is what it costs to move between processes."""
        return np.concatenate([np.ascontiguousarray(x).view(np.uint8) for x in self], axis=-1)

    @classmethod
    def unpacked(cls, rows: np.ndarray) -> "Batch":
        """The inverse of `packed`."""
        seq_len = rows.shape[-1] // sum(dtype().itemsize for dtype in _DTYPES)
        edges = np.cumsum([seq_len * dtype().itemsize for dtype in _DTYPES])[:-1]
        fields = np.split(np.asarray(rows), edges, axis=-1)
        return cls(*(np.ascontiguousarray(x).view(dtype) for x, dtype in zip(fields, _DTYPES, strict=True)))

    def causal(self) -> "Batch":
        """The same rows under a plain causal mask."""
        return self._replace(prefix_mask=self.prefix_mask & False)


_DTYPES = (np.int32, np.int32, np.float32, np.int16, np.int16, np.bool_, np.int8)


class Budget(NamedTuple):
    """How long the inputs, the targets and the whole of a segment may get, mode token and EOS counted."""

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
    """One denoiser under a budget: chunk -> segment, with lengths known before any sampling.

    Raises:
        ValueError: no chunk of two tokens fits, or the longest chunk needs more sentinels than there are.
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
                f"tokens and there are {len(symbols.sentinels)}: shorten seq_len or set max_spans."
            )
        self.segment_lengths = [self.segment_length(i) for i in range(n + 1)]
        """Positions that a chunk takes, by its tokens."""
        # the running maximum: a denoiser of yours may need less room for more tokens
        most = np.maximum.accumulate(self.segment_lengths)
        longest = np.searchsorted(most, np.arange(budget.total + 1), side="right") - 1
        self.longest_chunks = np.maximum(longest, 0).tolist()
        """The most tokens whose segment fits, by the room there is; 0 if none does."""

    def segment_length(self, n_tokens: int) -> int:
        """Positions of a row that a chunk takes: mode token, tokens, each sentinel twice, EOS."""
        n_added = len(self.mode_ids) + len(self.inputs_eos_ids) + len(self.eos_ids)
        return n_tokens + 2 * self.denoiser.n_sentinels(n_tokens) + n_added

    def _fits(self, n_tokens: int, budget: Budget) -> bool:
        n_inputs, n_targets = self.denoiser.lengths(n_tokens)
        n_inputs += len(self.mode_ids) + len(self.inputs_eos_ids)
        n_targets += len(self.eos_ids)
        # without inputs there are no two halves: the targets have the row
        halves_fit = n_inputs == 0 or (n_inputs <= budget.inputs and n_targets <= budget.targets)
        return halves_fit and self.segment_length(n_tokens) <= budget.total

    def __call__(self, tokens: np.ndarray, rng: np.random.Generator) -> Example:
        """A chunk denoised and framed."""
        return self.framed(self.denoiser(tokens, rng, self.symbols))

    def framed(self, example: Example) -> Example:
        """Inputs with their mode token (and EOS, where asked for), targets with their EOS."""
        inputs = (self.mode_ids, example.inputs, self.inputs_eos_ids)
        return Example(np.concatenate(inputs), np.concatenate((example.targets, self.eos_ids)))

    def write(self, row: Batch, at: int, example: Example, segment_id: int, denoiser_id: int) -> int:
        """`write_segment` with this vocabulary's BOS."""
        return write_segment(row, at, example, segment_id, denoiser_id, self.symbols.bos_id)


def write_segment(row: Batch, at: int, example: Example, segment_id: int, denoiser_id: int, bos_id: int) -> int:
    """Write a segment into a row of `Batch` at position `at`; returns the position after it.

    The shift to the right happens here and nowhere else.

    Paper: U-PaLM section 2.2: inputs and targets are joined first, then packed.
    """
    n_inputs = len(example.inputs)
    end = at + n_inputs + len(example.targets)
    np.concatenate(example, out=row.target_tokens[at:end], casting="same_kind")
    row.input_tokens[at] = bos_id
    row.input_tokens[at + 1 : end] = row.target_tokens[at : end - 1]
    row.loss_weights[at + n_inputs : end] = 1
    row.positions[at:end] = np.arange(end - at, dtype=np.int16)
    row.segment_ids[at:end] = segment_id
    row.prefix_mask[at : min(at + n_inputs + 1, end)] = True
    row.denoiser_ids[at:end] = denoiser_id
    return end
