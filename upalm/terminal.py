"""Output for terminals: consoles that print text as it is, and control characters spelt out."""

import re
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    r"""Spell out control characters, so that no name or text can colour a terminal or move its cursor.

    Line feeds and tabs stay. The last ranges change the direction of writing.

    >>> printable("a\x1b[31m\tb")
    'a\\x1b[31m\tb'
    """
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def console(*, stderr: bool = False) -> "Console":
    """Console whose text and tables print brackets as they are: rich's markup is off.

    A file or a pipe is 132 columns wide, so that tables are not cut.
    """
    from rich.console import Console  # 0.2 s that `upalm --help` saves

    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, highlight=False, markup=False, width=None if stream.isatty() else 132)
