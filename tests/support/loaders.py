"""Loaders over random tokens."""

import numpy as np

from upalm.data import DataConfig, Loader, Tokens
from upalm.ul2r import Symbols

SENTINELS = tuple(range(999, 899, -1))
SYMBOLS = Symbols(SENTINELS, {"s2s": (11, 12), "nlu": (13,), "nlg": (14, 15, 16)})


def random_documents(lengths, seed=0) -> list[list[int]]:
    """Random ids over all but the sentinels: padding, EOS and mode tokens occur in the text."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 900, n).tolist() for n in lengths]


def few_tokens() -> Tokens:
    """Documents of very different lengths, empty ones too."""
    return Tokens.from_documents(random_documents((0, 1, 2, 50, 700, 3000, 9)))


def build_loader(tokens, seed=0, rows=None, skips=(), **changes) -> Loader:
    """A loader of short rows in small batches."""
    config = DataConfig(**{"seq_len": 128, "batch_size": 4} | changes)
    return Loader(tokens, config, SYMBOLS, seed=seed, rows=rows, skips=skips)


def count_rows(loader, windows) -> int:
    """Rows of the first windows."""
    return sum(len(loader.plan(0, w)[0].rows) for w in range(windows))
