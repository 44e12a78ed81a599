"""Prompt ids from text with gaps and a mode token."""

from collections.abc import Sequence

from upalm.data.tokenizer import Tokenizer, check_utf8
from upalm.inference.config import Mode
from upalm.ul2r.symbols import MODES, N_SENTINELS, SENTINEL_TEXT


def has_gaps(text_or_parts: str | Sequence[str]) -> bool:
    """Return whether a text has gaps, well numbered or not."""
    return bool(SENTINEL_TEXT.search(text_or_parts)) if isinstance(text_or_parts, str) else len(text_or_parts) > 1


def split_gaps(text_or_parts: str | Sequence[str]) -> tuple[str, ...]:
    """Split a text at its gaps into the kept parts: one more than there are gaps.

    >>> split_gaps("def f(<extra_id_0>):<extra_id_1>")
    ('def f(', '):', '')

    Parts are taken as they are: `<extra_id_0>` in one of them is text, not a gap.

    Raises:
        ValueError: nothing at all, over 100 gaps, gaps that are not numbered 0, 1, 2, ... in order, or lone surrogates.
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
        raise ValueError("the text is empty: there is nothing to continue or to fill.")
    for part in parts:
        check_utf8(part, "the text")
    return parts


def prompt_ids(
    tokenizer: Tokenizer, text_or_parts: str | Sequence[str], mode: Mode = "none", inputs_eos: bool = False
) -> list[int]:
    """Build the ids of a prompt: mode token, then the parts, each encoded by itself, with sentinels between.

    EOS follows if there are gaps and training had it there: `inputs_eos` (`CheckpointInfo.inputs_eos`).

    Raises:
        ValueError: an unknown mode, or what `split_gaps` refuses.
    """
    if mode != "none" and mode not in MODES:
        raise ValueError(f"mode is {mode!r}, expected one of {', '.join(['none', *MODES])}.")
    return join_parts(tokenizer, [tokenizer.encode(part) for part in split_gaps(text_or_parts)], mode, inputs_eos)


def join_parts(tokenizer: Tokenizer, parts: Sequence[Sequence[int]], mode: Mode, inputs_eos: bool) -> list[int]:
    """Build the ids of a prompt as `prompt_ids` does, from parts that are ids."""
    ids = [*tokenizer.symbols.modes[mode]] if mode != "none" else []
    for sentinel, part in zip((None, *tokenizer.symbols.sentinels), parts, strict=False):
        ids += [] if sentinel is None else [sentinel]
        ids += part
    return ids + [tokenizer.symbols.eos_id] * (inputs_eos and len(parts) > 1)


def span_ids(tokenizer: Tokenizer, spans: Sequence[str]) -> list[int]:
    """Build the ids of an answer: each span after its sentinel, then EOS (U-PaLM section 4)."""
    ids = []
    for sentinel, span in zip(tokenizer.symbols.sentinels, spans, strict=False):
        check_utf8(span, "a span")
        ids += [sentinel, *tokenizer.encode(span)]
    return [*ids, tokenizer.symbols.eos_id]
