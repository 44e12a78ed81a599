"""A denoiser of your own in ten lines: a single gap in the middle of the text, beside U-PaLM's three.

python examples/my_denoiser.py
"""

from dataclasses import dataclass

import numpy as np

from upalm import ul2r
from upalm.data import DataConfig, Loader, Tokens
from upalm.data.loader import statistics


@dataclass(frozen=True, kw_only=True)
class Middle(ul2r.Denoiser):
    """Mask the middle `share` of a chunk."""

    share: float = 1 / 3

    def _gap(self, length):
        n = min(max(round(length * self.share), 1), length - 1)
        return (length - n) // 2, n

    def lengths(self, length):
        if length < 3:
            return length, 0
        _, n = self._gap(length)
        return length - n + 1, n + 1

    def n_sentinels(self, length):
        return 1 if length >= 3 else 0

    def __call__(self, tokens, rng, symbols):
        mask = np.zeros(len(tokens), bool)
        if len(tokens) >= 3:
            first, n = self._gap(len(tokens))
            mask[first : first + n] = True
        return ul2r.corrupt(tokens, mask, symbols.sentinels)


MINE = (*ul2r.UL2R, Middle(name="middle", mode="nlg", weight=0.5))

if __name__ == "__main__":
    tokens = Tokens.from_documents(np.random.default_rng(0).integers(10, 900, (50, 400)).tolist())
    symbols = ul2r.Symbols(tuple(range(999, 899, -1)), {"s2s": (7,), "nlu": (8,), "nlg": (9,)})
    config = DataConfig(mixture=MINE, seq_len=128, batch_size=4)  # for training: TrainConfig(data=config, ...)
    loader = Loader(tokens, config, symbols, seed=0)
    for counts in statistics(loader, 100).denoisers:
        print(counts)
    print(f"config.json stores {config.mixture!r}")
