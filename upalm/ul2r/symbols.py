"""Symbols: sentinels, mode tokens and special ids that the objective needs from a vocabulary."""

import re
from typing import NamedTuple

PAD_ID, BOS_ID, EOS_ID, UNK_ID = 0, 0, 1, 2
"""Special ids of this project's SentencePiece models. BOS shares id 0 with padding, as in T5 and PaLM, because
only the right shift ever writes it."""

N_SENTINELS = 100
"""Sentinels in a vocabulary: `<extra_id_0>` to `<extra_id_99>`."""

MODES = {"s2s": "[S2S]", "nlu": "[NLU]", "nlg": "[NLG]"}
"""Mode tokens of the S, R and X denoisers (U-PaLM section 2.3), kept as ordinary subwords."""

SENTINEL_TEXT = re.compile(r"<extra_id_(\d+)>")
"""A sentinel written in text; the group is its number."""


class Symbols(NamedTuple):
    """Ids of a vocabulary that the objective and the sampler need."""

    sentinels: tuple[int, ...]
    """Id of each sentinel, in the order in which spans use them."""
    modes: dict[str, tuple[int, ...]]
    """Ids of each mode token, by the keys of `MODES`."""
    eos_id: int = EOS_ID
    bos_id: int = BOS_ID
    never_generated: tuple[int, ...] = (BOS_ID, UNK_ID)
    """Ids that no answer may contain."""
