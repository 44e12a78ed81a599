"""`Batch`: packed decoder rows, the one type that data hands to the model.

Dims: B batch rows, T positions. NumPy on the host, JAX arrays on the device.
"""

from typing import Any, NamedTuple

import numpy as np


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
