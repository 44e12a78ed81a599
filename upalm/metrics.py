"""What a run shows and keeps: a progress line with the time left, and JSON lines."""

import hashlib
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from upalm.hosts import is_first

_SECONDS_BETWEEN_LINES = 15


class Writer(Protocol):
    """Takes the numbers of a step elsewhere."""

    def write(self, step: int, values: dict[str, float]) -> None:
        """Numbers by name."""
        ...

    def close(self) -> None:
        """No more come."""
        ...


class TensorBoard:
    """Event files in `folder`/tensorboard."""

    def __init__(self, folder: Path):
        try:
            from tensorboardX import SummaryWriter
        except ImportError as e:
            raise ValueError("writing for TensorBoard needs: pip install 'upalm[loggers]'.") from e
        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def write(self, step: int, values: dict[str, float]) -> None:
        """See `Writer`."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """See `Writer`."""
        self._writer.close()


class Wandb:
    """A run of Weights & Biases, set up by its own environment variables (WANDB_PROJECT, WANDB_MODE, ...)."""

    def __init__(self, folder: Path):
        try:
            import wandb
        except ImportError as e:
            raise ValueError("writing for Weights & Biases needs: pip install 'upalm[loggers]'.") from e
        number = hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:12]  # a resumed run is the same run
        self._run = wandb.init(dir=str(folder), name=folder.name, id=number, resume="allow")

    def write(self, step: int, values: dict[str, float]) -> None:
        """See `Writer`."""
        self._run.log(values, step=step)

    def close(self) -> None:
        """See `Writer`."""
        self._run.finish()


OF_THE_MACHINE = {"tokens_per_second", "mfu", "data_wait", "checkpoint_seconds", "memory_gb"}
"""Metrics that differ between equal runs."""

WRITERS = {"tensorboard": TensorBoard, "wandb": Wandb}


class Metrics:
    """Writes `metrics.jsonl`, and to other writers; on the first process only.

    Lines after `first_step` are from an interrupted run, or from before a rewind, and are dropped; events stay.
    """

    def __init__(self, path: Path, first_step: int, writers: Sequence[str] = ()):
        self._file, self._writers = None, []
        if not is_first():
            return
        self._path, self._writers = path, [WRITERS[name](path.parent) for name in writers]
        self.rewind(first_step)

    def rewind(self, step: int) -> None:
        """Drop the lines after `step`."""
        if not is_first():
            return
        self._close_file()
        kept = []
        if self._path.is_file():
            lines = [line for line in self._path.read_text().split("\n") if line.endswith("}")]
            kept = [line for line in lines if (found := json.loads(line))["step"] <= step or "event" in found]
        self._path.write_text("".join(line + "\n" for line in kept))
        self._file = self._path.open("a")

    def write(self, step: int, values: dict[str, Any]) -> None:
        """One line; numbers are kept to six digits."""
        if self._file is None:
            return
        rounded = {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in values.items()}
        self._file.write(json.dumps({"step": step, **rounded}) + "\n")
        self._file.flush()
        numbers = {k: float(v) for k, v in rounded.items() if isinstance(v, int | float)}
        for writer in self._writers:
            writer.write(step, numbers)

    def close(self) -> None:
        """Close the file, and the others."""
        self._close_file()
        for writer in self._writers:
            writer.close()

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`."""
    return [json.loads(line) for line in path.read_text().split("\n") if line]


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

    def of(self, done: int, total: int, note: str = "") -> None:
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
