"""Roles: the ids of an open vocabulary that serve as BOS, EOS, sentinels and mode tokens."""

import json
import re
from dataclasses import asdict, dataclass, field
from typing import Literal

from upalm.data.hf_vocabulary import Vocabulary
from upalm.files import parse_json
from upalm.ul2r.symbols import MODES, N_SENTINELS

SentinelChoice = Literal["auto", "named", "reserved", "reserved-last", "unused-rows", "subwords", "levanter"]
"""Ways to choose sentinels. `auto` is the first of named, reserved, unused-rows and subwords that there are 100 of."""

_RESERVED = re.compile(r"^[<\[|]+(?:reserved(?:_special)?_token|reserved|unused|extra)_?(\d+)(?:_token)?[|\]>]+$", re.I)


@dataclass(frozen=True)
class Roles:
    """Ids with a role that the vocabulary itself does not tell; stored as `symbols.json`."""

    bos_id: int
    eos_id: int
    sentinels: list[int]
    """Ids of `<extra_id_0>` to `<extra_id_99>`."""
    sentinels_are: str
    """Choice of the sentinels, in words."""
    modes: dict[str, list[int]] = field(default_factory=dict)
    """Ids of each mode token; empty if they are written as the text `[NLU]`, `[NLG]`, `[S2S]`."""

    def __post_init__(self):
        ids = [self.bos_id, self.eos_id, *self.sentinels, *(i for mode in self.modes.values() for i in mode)]
        if wrong := [i for i in ids if not isinstance(i, int) or isinstance(i, bool) or i < 0]:
            raise ValueError(f"{wrong[0]!r} is no id, expected a whole number of at least 0.")
        if self.modes and sorted(self.modes) != sorted(MODES):
            raise ValueError(f"modes {sorted(self.modes)}, expected {sorted(MODES)}, or none.")

    @classmethod
    def read(cls, content: bytes) -> "Roles":
        """Read the content of a `symbols.json`.

        Raises:
            ValueError: damaged, or an id that is no number.
        """
        try:
            return cls(**parse_json(content))
        except (ValueError, TypeError, AttributeError) as e:
            raise ValueError(f"the symbols.json beside it is damaged: {e}") from e

    def to_bytes(self) -> bytes:
        """Return the content of `symbols.json`."""
        return json.dumps(asdict(self)).encode() + b"\n"


def choose_roles(
    content: bytes, *, bos_id: int | None, eos_id: int | None, n_rows: int = 0, sentinels: SentinelChoice = "auto"
) -> Roles:
    """Choose roles in a vocabulary that was not made for UL2R.

    Args:
        content: of `tokenizer.json`.
        bos_id: of the checkpoint; without one, EOS begins texts.
        eos_id: of the checkpoint; without one, BOS ends them.
        n_rows: rows of the embedding table; those without a piece can serve as sentinels.
        sentinels: `named` takes the vocabulary's own `<extra_id_i>`, `reserved` its first 100 reserved tokens,
            `reserved-last` its last 100, `unused-rows` the highest rows of the table that no piece has, `subwords` its
            last 100 subwords, highest id first (U-PaLM section 11.3), `levanter` what Levanter's UL2R takes: the last
            100 reserved tokens, with reserved tokens 3, 4 and 5 as the modes of R, X and S.

    Raises:
        ValueError: neither BOS nor EOS, a damaged file, or fewer than 100 ids of the kind wanted.
    """
    bos, eos = (eos_id if bos_id is None else bos_id), (bos_id if eos_id is None else eos_id)
    if bos is None or eos is None:
        raise ValueError("the tokenizer has neither a BOS nor an EOS token: give their ids in its config.json.")
    vocabulary = Vocabulary.read(content)
    kinds = ("named", "reserved", "unused-rows", "subwords") if sentinels == "auto" else (sentinels,)
    counts = {}
    for kind in kinds:
        ids, words = _candidates(vocabulary, kind, {bos, eos}, n_rows)
        if len(ids) >= N_SENTINELS:
            modes = _levanter_modes(vocabulary) if kind == "levanter" else {}
            return Roles(bos, eos, ids[:N_SENTINELS], words, modes)
        counts[kind] = len(ids)
    found = ", ".join(f"{n} {kind}" for kind, n in counts.items())
    raise ValueError(f"{N_SENTINELS} sentinels are needed, and the vocabulary offers {found}: choose another kind.")


def _candidates(vocabulary: Vocabulary, kind: str, taken: set[int], n_rows: int) -> tuple[list[int], str]:
    """Return ids in the order of `<extra_id_0>`, `<extra_id_1>`, ..., and the choice in words."""
    reserved = sorted((i, piece) for piece, i in vocabulary.ids.items() if _RESERVED.match(piece) and i not in taken)
    match kind:
        case "named":
            ids = [vocabulary.ids.get(f"<extra_id_{i}>", -1) for i in range(N_SENTINELS)]
            return [i for i in ids if i >= 0], "the tokenizer's own <extra_id_0> to <extra_id_99>"
        case "reserved" | "reserved-last" | "levanter":
            chosen = reserved[:N_SENTINELS] if kind == "reserved" else reserved[-N_SENTINELS:]
            words = "reserved tokens " if kind == "reserved" else "the last reserved tokens, "
            return [i for i, _ in chosen], words + (f"{chosen[0][1]} to {chosen[-1][1]}" if chosen else "")
        case "unused-rows":
            unused = sorted(set(range(n_rows)) - set(vocabulary.ids.values()) - taken, reverse=True)[:N_SENTINELS]
            return unused, "rows of the table that no subword has" + _span(unused)
    fixed = {*vocabulary.byte_ids, *vocabulary.added, *taken}
    last = sorted(set(vocabulary.ids.values()) - fixed, reverse=True)[:N_SENTINELS]
    return last, "the last 100 subwords of the vocabulary" + _span(last)


def _span(ids: list[int]) -> str:
    return f", ids {ids[0]} down to {ids[-1]}" if ids else ""


def _levanter_modes(vocabulary: Vocabulary) -> dict[str, list[int]]:
    by_number = {int(m[1]): i for piece, i in vocabulary.ids.items() if (m := _RESERVED.match(piece))}
    numbers = {"nlu": 3, "nlg": 4, "s2s": 5}
    if missing := [n for n in numbers.values() if n not in by_number]:
        raise ValueError(f"Levanter's modes are reserved tokens 3, 4 and 5; the vocabulary lacks {missing}.")
    return {mode: [by_number[n]] for mode, n in numbers.items()}
