"""Inputs and targets that R, X and S make of one sentence.

python examples/denoise_a_sentence.py
"""

import numpy as np

import upalm
from upalm import ul2r
from upalm.data import load_tokenizer

SENTENCE = "def mean(values):\n    total = sum(values)\n    return total / len(values)\n"

tokenizer = load_tokenizer(upalm.PALM_TINY)
tokens = np.array(tokenizer.encode(SENTENCE), np.int32)
for denoiser in ul2r.UL2R:
    inputs, targets = denoiser(tokens, np.random.default_rng(1), tokenizer.symbols)
    print(f"--- {denoiser.name}: inputs\n{ul2r.MODES[denoiser.mode]} {tokenizer.decode(inputs)}")
    print(f"--- {denoiser.name}: targets\n{tokenizer.decode(targets)}\n")
