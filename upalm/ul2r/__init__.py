"""UL2R, the objective of U-PaLM: denoisers, their mixture, and the decoder rows that they fill.

A chunk of tokens becomes an `Example` of inputs (seen in both directions) and targets (predicted):

    R  `[NLU]`  short spans masked        (mean 3, 15%)     25%
    X  `[NLG]`  long spans, much masked   (mean 32, 50%)    25%
    S  `[S2S]`  everything after a random point             50%

This folder needs NumPy alone: it can be copied into another project under any name.

Paper: U-PaLM (arXiv:2210.11399) section 2.3; span sampling as in T5 (arXiv:1910.10683).
"""

from .denoisers import Causal, Denoiser, Gaps, Lines, PrefixLM, SpanCorruption, find_lines
from .mixtures import (
    CAUSAL,
    MIXTURES,
    PREFIX_LM,
    SUPERVISED,
    UL2,
    UL2R,
    UL2R_EOS,
    UL2R_GAPS,
    UL2R_INFILL,
    UL2R_SPLIT_X,
    Mixture,
    R,
    S,
    X,
    mixture,
    mixture_text,
)
from .rows import Batch, Budget, Segmenter, write_segment
from .spans import Example, corrupt, restore, span_counts, span_noise_mask
from .symbols import MODES, N_SENTINELS, Symbols, find_line_breaks
