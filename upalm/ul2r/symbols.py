"""Symbols: sentinels, mode tokens and special ids that the objective needs from a vocabulary."""

import re
from collections.abc import Iterable
from typing import NamedTuple

PAD_ID, BOS_ID, EOS_ID, UNK_ID = 0, 0, 1, 2
"""Special ids of this project's SentencePiece models. BOS shares id 0 with padding, as in T5 and PaLM, because
only the right shift ever writes it."""

N_SENTINELS = 100
"""Sentinels in a vocabulary: `<extra_id_0>` to `<extra_id_99>`."""

MODES = {"s2s": "[S2S]", "nlu": "[NLU]", "nlg": "[NLG]"}
"""Mode tokens of the S, R and X denoisers (U-PaLM section 2.3), kept as ordinary subwords."""

SENTINEL_TEXT = re.compile(r"<extra_id_(0|[1-9][0-9]*)>")
"""A sentinel written in text, as `Tokenizer.decode` writes it; the group is its number. `<extra_id_00>` is text."""


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
    line_breaks: tuple[int, ...] = ()
    """Ids whose text has a line break."""
    line_starts: tuple[int, ...] = ()
    """Ids after which a line begins: their text ends in a line break, or in one and spaces or tabs."""
    line_ends: tuple[int, ...] = ()
    """Ids before which a line ends: their text begins with a line break, or with spaces or tabs and one."""
    line_lasts: tuple[int, ...] = ()
    """Ids that are the last of a line: their text is some of that line, and then line breaks, spaces or tabs."""


def find_line_breaks(texts: Iterable[bytes]) -> dict[str, tuple[int, ...]]:
    r"""Return the last four of `Symbols` by name, from the text of each id.

    >>> find_line_breaks([b"x", b":\n", b"\n    ", b"\n#", b"#\n#\n"])
    {'line_breaks': (1, 2, 3, 4), 'line_starts': (1, 2, 4), 'line_ends': (2, 3), 'line_lasts': (1,)}
    """
    space = b" \t\r"
    breaks = {i: text for i, text in enumerate(texts) if b"\n" in text}
    starts = [i for i, text in breaks.items() if text.rstrip(space).endswith(b"\n")]
    ends = [i for i, text in breaks.items() if text.lstrip(space).startswith(b"\n")]
    others = {*ends, *(i for i in starts if b"\n" in breaks[i].rstrip(space + b"\n"))}  # the latter hold two lines
    lasts = [i for i in starts if i not in others]
    return {
        "line_breaks": tuple(breaks),
        "line_starts": tuple(starts),
        "line_ends": tuple(ends),
        "line_lasts": tuple(lasts),
    }
