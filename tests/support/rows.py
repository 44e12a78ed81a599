"""Packed rows for tests of the model."""

import numpy as np

from upalm import ul2r
from upalm.data.config import DataConfig
from upalm.data.loader import Loader
from upalm.data.tokens import Tokens
from upalm.ul2r.rows import Batch
from upalm.ul2r.symbols import Symbols

SYMBOLS = Symbols(tuple(range(199, 99, -1)), {"s2s": (3, 4), "nlu": (5,), "nlg": (6,)})


def packed_batch() -> Batch:
    """Three rows of 64 tokens below 200, of all denoisers, with padding at the end of the first."""
    tokens = Tokens.from_documents([np.random.default_rng(i).integers(7, 100, 150).tolist() for i in range(4)])
    batch = Loader(tokens, DataConfig(seq_len=64, batch_size=3), SYMBOLS, seed=0).batch(0)
    for field in batch:
        field[0, -5:] = 0  # rows of this loader hardly have any
    return batch


def pack(*examples, length: int = 64) -> Batch:
    """One packed row of (inputs, targets) pairs."""
    batch = Batch.empty(1, length)
    row, at = Batch(*(x[0] for x in batch)), 0
    for i, (inputs, targets) in enumerate(examples):
        at = ul2r.write_segment(row, at, ul2r.Example(np.array(inputs, int), np.array(targets, int)), i + 1, 0, 0)
    return batch
