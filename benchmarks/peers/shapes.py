"""Shapes that several implementations build the same model from, and the optimizer's settings."""

from typing import Literal, NamedTuple

import numpy as np


class Shape(NamedTuple):
    """A PaLM (one key-value head), or with a `sequential` block a Llama; SwiGLU, tied embeddings."""

    n_layers: int
    d_model: int
    n_heads: int
    d_head: int
    d_ff: int
    vocab_size: int
    seq_len: int
    batch_size: int
    n_kv_heads: int = 1
    block: Literal["parallel", "sequential"] = "parallel"

    def weight_bytes(self, itemsize: int = 4) -> int:
        """All matrices, in float32 if not told: what one decoding step must read."""
        per_layer = self.d_model * (2 * self.n_heads * self.d_head + 2 * self.n_kv_heads * self.d_head + 3 * self.d_ff)
        return itemsize * (self.n_layers * per_layer + self.vocab_size * self.d_model)


SHAPES = {
    "smoke": Shape(2, 128, 2, 64, 512, 512, 64, 2),
    "tiny": Shape(4, 256, 4, 64, 1024, 4096, 256, 16),
    "small": Shape(8, 512, 8, 64, 2048, 8192, 512, 8),
    "smollm2": Shape(30, 576, 9, 64, 1536, 49152, 256, 8, n_kv_heads=3, block="sequential"),
    "llama1b": Shape(16, 2048, 32, 64, 8192, 128_256, 2048, 8, n_kv_heads=8, block="sequential"),
    "1b": Shape(16, 2048, 8, 256, 8192, 32_000, 2048, 16),
}
ADAMW = {"learning_rate": 3e-4, "b1": 0.9, "b2": 0.95, "eps": 1e-8, "weight_decay": 0.1}


def random_rows(n_rows: int, length: int, vocab_size: int) -> np.ndarray:
    """Token ids, the same for every contender."""
    return np.random.default_rng(0).integers(0, vocab_size, (n_rows, length))
