"""Progress bars with the time left."""

import math
import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_SECONDS_BETWEEN_LINES = 15


def console() -> Console:
    """For what a command prints; where it goes into a file or a pipe, tables get room."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 132)


class Bar:
    """Progress of something of known length: a live bar in a terminal, a line now and then elsewhere."""

    def __init__(self, title: str, total: int, done: int = 0, *, quiet: bool = False):
        self._title, self._total, self._first, self._done = title, total, done, done
        self._start, self._last_line = time.monotonic(), -math.inf
        self._quiet, self._live = quiet, sys.stderr.isatty() and not quiet
        columns = (
            *(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()),
            *(TextColumn("{task.fields[note]}"), TimeRemainingColumn()),
        )
        self._progress = Progress(*columns, console=Console(stderr=True), disable=not self._live)
        self._task = self._progress.add_task(title, total=total, completed=done, note="")

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def say(self, what: str) -> None:
        """A line of its own."""
        if self._live:
            self._progress.console.print(f"{self._title}: {what}", style="dim")
        elif not self._quiet:
            print(f"{self._title}: {what}", file=sys.stderr, flush=True)

    def set_total(self, done: int, total: int, note: str = "") -> None:
        """Now at `done` of `total`, where that is known only now."""
        self._total = total
        self._progress.update(self._task, total=total)
        self.update(done, note)

    def update(self, done: int, note: str = "") -> None:
        """Now at `done` of the total."""
        self._done = done
        self._progress.update(self._task, completed=done, note=note)
        now = time.monotonic()
        if self._quiet or self._live or (now - self._last_line < _SECONDS_BETWEEN_LINES and done < self._total):
            return
        self._last_line = now
        left = (now - self._start) / max(done - self._first, 1) * (self._total - done)
        print(f"{self._title} {done}/{self._total} {note} {left:.0f} s left", file=sys.stderr, flush=True)


class Count:
    """Progress of something of unknown length: counters and their rate, in one line."""

    def __init__(self, title: str, names: tuple[str, ...]):
        self._title, self._names, self._start = title, names, time.monotonic()
        self._last = -math.inf

    def __enter__(self) -> "Count":
        return self

    def __exit__(self, *_: object) -> None:
        if sys.stderr.isatty():
            print(file=sys.stderr)

    def update(self, *counts: int) -> None:
        """Now at these counts."""
        now = time.monotonic()
        if now - self._last < (0.2 if sys.stderr.isatty() else _SECONDS_BETWEEN_LINES):
            return
        self._last = now
        seconds = max(now - self._start, 1e-9)
        shown = ", ".join(f"{n:,} {name}" for n, name in zip(counts, self._names, strict=True))
        line = f"{self._title} {shown} ({counts[-1] / seconds:,.0f} {self._names[-1]}/s)"
        print(line, end="\r" if sys.stderr.isatty() else "\n", file=sys.stderr, flush=True)
