"""Loaders over random tokens."""

import numpy as np

from upalm.data import DataConfig, Loader, Tokens
from upalm.ul2r import Symbols

SENTINELS = tuple(range(999, 899, -1))
MODES = {"s2s": (11, 12), "nlu": (13,), "nlg": (14, 15, 16)}
BREAKS = {"line_breaks": (600, 700), "line_starts": (630, 700), "line_ends": (600, 660), "line_lasts": (660, 690)}
SYMBOLS = Symbols(SENTINELS, MODES)._replace(**{name: tuple(range(*ids)) for name, ids in BREAKS.items()})


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
