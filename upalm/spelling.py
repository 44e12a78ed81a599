"""Suggestions for names that are not known."""

import difflib
from collections.abc import Iterable


def suggest(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """End an error message about an unknown name: with the nearest known name, or else with the choice.

    Args:
        name: what was given.
        known: every name that would have been right.
        otherwise: the sentence if none is near; without it, the known names are listed.

    >>> suggest("palm_tyny", ["palm_tiny", "ul2r_tiny"])
    "did you mean 'palm_tiny'?"
    >>> suggest("x", ["palm_tiny", "ul2r_tiny"])
    'choose one of palm_tiny, ul2r_tiny.'
    """
    choice = list(known)
    if near := difflib.get_close_matches(name, choice, n=1):
        return f"did you mean {near[0]!r}?"
    return otherwise or f"choose one of {', '.join(choice)}."
