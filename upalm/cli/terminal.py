"""Text for terminals: control characters are shown, never sent."""

import re

_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    r"""Spell out control characters, so that no name or text can colour a terminal or move its cursor.

    Line feeds and tabs stay. The last ranges change the direction of writing.

    >>> printable("a\x1b[31m\tb")
    'a\\x1b[31m\tb'
    """
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
