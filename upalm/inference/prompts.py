"""Prompt ids from text with gaps and a mode token."""

from collections.abc import Sequence

from upalm.data.tokenizer import Tokenizer
from upalm.ul2r.symbols import MODES, N_SENTINELS, SENTINEL_TEXT

Mode = str  # none, s2s, nlu or nlg


# --- Prompts --------------------------------------------------------------------------------------


def split_gaps(text_or_parts: str | Sequence[str]) -> tuple[str, ...]:
    """The kept parts around the gaps: one more than there are gaps.

    >>> split_gaps("def f(<extra_id_0>):<extra_id_1>")
    ('def f(', '):', '')

    Parts are taken as they are: `<extra_id_0>` in one of them is text, not a gap.

    Raises:
        ValueError: nothing at all, over 100 gaps, or gaps that are not numbered 0, 1, 2, ... in order.
    """
    if isinstance(text_or_parts, str):
        pieces = SENTINEL_TEXT.split(text_or_parts)
        parts, numbers = tuple(pieces[0::2]), [int(x) for x in pieces[1::2]]
        if numbers != list(range(len(numbers))):
            raise ValueError(
                f"gaps are numbered {numbers}: expected <extra_id_0>, <extra_id_1>, ... each once, in order. "
                "(Text that has such words of its own is given as parts.)"
            )
    else:
        parts = tuple(text_or_parts)
    if len(parts) - 1 > N_SENTINELS:
        raise ValueError(f"{len(parts) - 1} gaps: there are {N_SENTINELS} sentinels. Fill the text in pieces.")
    if parts in ((), ("",)):
        raise ValueError("the text is empty: there is nothing to go on from.")
    return parts


def prompt_ids(
    tokenizer: Tokenizer, text_or_parts: str | Sequence[str], mode: Mode = "none", inputs_eos: bool = False
) -> list[int]:
    """Build the ids of a prompt: mode token, then the parts, each encoded by itself, with sentinels between.

    EOS follows if there are gaps and `inputs_eos` says that training had it there (`CheckpointInfo.inputs_eos`).

    Raises:
        ValueError: an unknown mode, or what `split_gaps` refuses.
    """
    if mode != "none" and mode not in MODES:
        raise ValueError(f"mode is {mode!r}, expected one of {['none', *MODES]}.")
    parts = split_gaps(text_or_parts)
    ids = [*tokenizer.symbols.modes[mode]] if mode != "none" else []
    for sentinel, part in zip((None, *tokenizer.symbols.sentinels), parts, strict=False):
        ids += [] if sentinel is None else [sentinel]
        ids += tokenizer.encode(part)
    return ids + [tokenizer.symbols.eos_id] * (inputs_eos and len(parts) > 1)
