"""What a run shows and keeps: a progress line with the time left, and JSON lines."""

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_SECONDS_BETWEEN_LINES = 15


class Metrics:
    """Writes `metrics.jsonl`; lines after `first_step` are from an interrupted run and are dropped."""

    def __init__(self, path: Path, first_step: int):
        kept = []
        if path.is_file():
            lines = [line for line in path.read_text().split("\n") if line.endswith("}")]
            kept = [line for line in lines if json.loads(line)["step"] <= first_step]
        path.write_text("".join(line + "\n" for line in kept))
        self._file = path.open("a")

    def write(self, step: int, values: dict[str, Any]) -> None:
        """One line; numbers are kept to six digits."""
        rounded = {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in values.items()}
        self._file.write(json.dumps({"step": step, **rounded}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`."""
    return [json.loads(line) for line in path.read_text().split("\n") if line]


class Bar:
    """Progress of something of known length: a live bar in a terminal, a line now and then elsewhere."""

    def __init__(self, title: str, total: int, done: int = 0):
        self._title, self._total, self._first, self._done = title, total, done, done
        self._start = self._last_line = time.monotonic()
        self._live = sys.stderr.isatty()
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

    def of(self, done: int, total: int) -> None:
        """Now at `done` of `total`, where that is known only now."""
        self._total = total
        self._progress.update(self._task, total=total)
        self.update(done)

    def update(self, done: int, note: str = "") -> None:
        """Now at `done` of the total."""
        self._done = done
        self._progress.update(self._task, completed=done, note=note)
        now = time.monotonic()
        if self._live or (now - self._last_line < _SECONDS_BETWEEN_LINES and done < self._total):
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
