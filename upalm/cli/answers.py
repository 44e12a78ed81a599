"""Print answers: as the bytes that they are, or in colour on a terminal."""

import os
import re
import sys

FILL, DIM = "\x1b[1;32m", "\x1b[2m"
_RESET = "\x1b[0m"
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def shown(text: str) -> str:
    r"""Replace control characters, except tab and newline, by characters that show them.

    >>> shown("a\tb\r\n\x1b[31m\x7f\x9b")
    'a\tb␍\n␛[31m␡\\x9b'
    """

    def picture(found: re.Match[str]) -> str:
        code = ord(found[0])
        return chr(0x2400 + code) if code < 0x20 else "␡" if code == 0x7F else f"\\x{code:02x}"

    return _CONTROL.sub(picture, text)


class Answers:
    """Standard output: exact where it is no terminal, so that `upalm infill ... > file` writes the text itself.

    Args:
        is_single: one answer is all that comes, so nothing needs to part it from others.
    """

    def __init__(self, is_single: bool):
        self._is_terminal, self._is_single = sys.stdout.isatty(), is_single
        has_colour = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self._has_colour = self._is_terminal and has_colour

    def write(self, text: str, style: str = "") -> None:
        """Write a part of an answer."""
        if not self._is_terminal:
            sys.stdout.flush()
            sys.stdout.buffer.write(text.encode())
            sys.stdout.buffer.flush()
            return
        text = shown(text).encode(sys.stdout.encoding, "replace").decode(sys.stdout.encoding)
        sys.stdout.write(f"{style}{text}{_RESET}" if style and text and self._has_colour else text)
        sys.stdout.flush()

    def heading(self, text: str) -> None:
        """Write a line above an answer."""
        self.write(text, DIM)
        self.write("\n")

    def end(self) -> None:
        """End an answer: with a new line, where a reader or another answer follows."""
        if self._is_terminal or not self._is_single:
            self.write("\n")
