"""Print answers: as the bytes that they are, or in colour on a terminal."""

import os
import sys

from upalm.terminal import printable

FILL, DIM = "\x1b[1;32m", "\x1b[2m"
_RESET = "\x1b[0m"


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
        text = printable(text).encode(sys.stdout.encoding, "replace").decode(sys.stdout.encoding)
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
