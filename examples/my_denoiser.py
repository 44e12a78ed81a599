"""A denoiser of your own in ten lines: a single gap in the middle of the text, beside U-PaLM's three.

python examples/my_denoiser.py
"""

from dataclasses import dataclass

import numpy as np

from upalm import ul2r
from upalm.data.config import DataConfig
from upalm.data.loader import Loader, statistics
from upalm.data.tokens import Tokens
from upalm.ul2r.symbols import Symbols


@dataclass(frozen=True, kw_only=True)
class Middle(ul2r.Denoiser):
    """Mask the tokens between one third and two thirds of a chunk."""

    def lengths(self, length):
        return length - length // 3 + 1, length // 3 + 1

    def n_sentinels(self, length):
        return 1 if length >= 3 else 0

    def __call__(self, tokens, rng, symbols):
        third = len(tokens) // 3
        return ul2r.corrupt(tokens, (np.arange(len(tokens)) // max(third, 1) == 1) & (third > 0), symbols.sentinels)


ul2r.MIXTURES["mine"] = (*ul2r.UL2R, Middle(name="middle", mode="nlg", weight=0.5))

if __name__ == "__main__":
    text = Tokens.of(np.random.default_rng(0).integers(10, 900, (50, 400)).tolist())
    symbols = Symbols(tuple(range(999, 899, -1)), {"s2s": (7,), "nlu": (8,), "nlg": (9,)})
    loader = Loader(text, DataConfig(mixture="mine", seq_len=128, batch_size=4), symbols, seed=0)
    for counts in statistics(loader, 100).denoisers:
        print(counts)
    assert loader.batch(0).loss_weights.any(), "rows as for every other denoiser; train with DataConfig(mixture='mine')"
