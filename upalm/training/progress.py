"""Progress bars with the time left, and counters of unknown length."""

import math
import sys
import time

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from upalm.terminal import console

_SECONDS_BETWEEN_LINES = 15


class Bar:
    """Progress through a known number of items: a live bar in a terminal, a line every 15 s elsewhere.

    Time left is estimated from the second update on, because the first item often includes compilation.

    Args:
        title: begins the line.
        total: number of items.
        done: items that were done before.
        quiet: show nothing, as on all processes but the first.
    """

    def __init__(self, title: str, total: int, done: int = 0, *, quiet: bool = False):
        self._title, self._total, self._done = title, total, done
        self._measured_from: tuple[int, float] | None = None  # items done at the first update, and when that was
        self._last_line, self._quiet, self._live = -math.inf, quiet, sys.stderr.isatty() and not quiet
        text, note = TextColumn("{task.description}"), TextColumn("{task.fields[note]}")
        columns = (text, BarColumn(), MofNCompleteColumn(), note, TimeRemainingColumn())
        self._progress = Progress(*columns, console=console(stderr=True), disable=not self._live)
        self._task = self._progress.add_task(title, total=total, completed=done, note="")

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def say(self, message: str) -> None:
        """Print a line of its own."""
        if self._live:
            self._progress.console.print(f"{self._title}: {message}", style="dim", markup=False)
        elif not self._quiet:
            print(f"{self._title}: {message}", file=sys.stderr, flush=True)

    def set_total(self, done: int, total: int, note: str = "") -> None:
        """Show `done` items of a total that is known only now."""
        self._total = total
        self._progress.update(self._task, total=total)
        self.update(done, note)

    def update(self, done: int, note: str = "") -> None:
        """Show that `done` items are done."""
        now, is_first = time.monotonic(), self._measured_from is None and done > self._done
        if is_first:
            self._measured_from = done, now
        self._progress.update(self._task, completed=done, note=escape(note))
        is_due = is_first or done >= self._total or now - self._last_line >= _SECONDS_BETWEEN_LINES
        if self._quiet or self._live or not is_due:
            return
        self._last_line = now
        parts = (self._title, f"{done}/{self._total}", note, self._left(done, now))
        print(" ".join(filter(None, parts)), file=sys.stderr, flush=True)

    def _left(self, done: int, now: float) -> str:
        """Estimated time left; empty before it is known and after the end."""
        first, since = self._measured_from or (done, now)
        if done == first or done >= self._total:
            return ""
        return f"{(now - since) / (done - first) * (self._total - done):.0f} s left"


class Count:
    """Progress of unknown length: counters and the rate of the last one since the first update, in one line."""

    def __init__(self, title: str, names: tuple[str, ...]):
        self._title, self._names, self._last = title, names, -math.inf
        self._measured_from: tuple[int, float] | None = None  # last counter at the first update, and when that was

    def __enter__(self) -> "Count":
        return self

    def __exit__(self, *_: object) -> None:
        if sys.stderr.isatty():
            print(file=sys.stderr)

    def update(self, *counts: int) -> None:
        """Show the counts."""
        now = time.monotonic()
        self._measured_from = self._measured_from or (counts[-1], now)
        if now - self._last < (0.2 if sys.stderr.isatty() else _SECONDS_BETWEEN_LINES):
            return
        self._last = now
        first, since = self._measured_from
        shown = ", ".join(f"{n:,} {name}" for n, name in zip(counts, self._names, strict=True))
        rate = f" ({(counts[-1] - first) / (now - since):,.0f} {self._names[-1]}/s)" if now > since else ""
        line = f"{self._title} {shown}{rate}"
        print(line, end="\r" if sys.stderr.isatty() else "\n", file=sys.stderr, flush=True)
