"""Symbols: sentinels, mode tokens and special ids that the objective needs from a vocabulary."""

import re
from typing import NamedTuple

PAD_ID, BOS_ID, EOS_ID, UNK_ID = 0, 0, 1, 2
"""Of our SentencePiece models: BOS shares id 0 with padding, as in T5 and PaLM: it is only ever put there by the right
shift."""


N_SENTINELS = 100


MODES = {"s2s": "[S2S]", "nlu": "[NLU]", "nlg": "[NLG]"}
"""Mode tokens of the S, R and X denoisers (U-PaLM section 2.3), kept as ordinary subwords."""


SENTINEL_TEXT = re.compile(r"<extra_id_(\d+)>")


class Symbols(NamedTuple):
    """What the objective and the sampler need to know of a vocabulary."""

    sentinels: tuple[int, ...]
    modes: dict[str, tuple[int, ...]]
    eos_id: int = EOS_ID
    bos_id: int = BOS_ID
    never_generated: tuple[int, ...] = (BOS_ID, UNK_ID)
    """Ids that no answer has."""
