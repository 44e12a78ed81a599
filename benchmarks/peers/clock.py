"""Time several contenders in turns, each in a process of its own.

A script that uses it is started once by the user, and once per contender with `--worker NAME`. All contenders start
before the first round, so that nobody is timed while another compiles; while one works, the others wait for input. The
order rotates from round to round, so that a slow drift of the machine meets everyone.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Record:
    """Times and figures of one contender."""

    first_seconds: float
    """From the start of the process to the end of the first call: imports, construction and compilation."""
    samples: list[dict[str, float]] = field(default_factory=list)
    """One per round: `seconds`, `peak_mb` and whatever the call reported."""

    def median(self, name: str = "seconds") -> float:
        """Median over the rounds."""
        return statistics.median(self.values(name))

    def values(self, name: str = "seconds") -> list[float]:
        """Values of a figure, in the order of the rounds."""
        return [sample[name] for sample in self.samples]


def serve(build: Callable[[], Callable[[], dict[str, float] | None]]) -> None:
    """Be a contender: build, call twice, then time one call per line of the standard input.

    A call may return figures of its own; `seconds` among them replaces the time that is taken here.
    """
    started = time.perf_counter()
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print goes to stderr
    call = build()
    call()
    print(json.dumps({"first_seconds": time.perf_counter() - started}), file=replies)
    call()
    for _ in sys.stdin:
        started = time.perf_counter()
        figures = call() or {}
        sample = {"seconds": time.perf_counter() - started, "peak_mb": _peak_mb()} | figures
        print(json.dumps(sample), file=replies)


def race(commands: dict[str, list[str]], rounds: int) -> dict[str, Record]:
    """Run all contenders, given their command lines.

    Raises:
        SystemExit: one did not start; its last words are above.
    """
    processes = {name: _start(words) for name, words in commands.items()}
    records = {name: Record(**_read(name, process)) for name, process in processes.items()}
    names = list(records)
    for turn in range(rounds):
        k = turn % len(names)
        for name in names[k:] + names[:k]:
            _write(processes[name])
            records[name].samples.append(_read(name, processes[name]))
        seconds = (f"{name} {records[name].samples[-1]['seconds']:.3f} s" for name in names)
        print(f"round {turn + 1} of {rounds}:", *seconds, file=sys.stderr, flush=True)
    for process in processes.values():
        process.communicate()
    return records


def workers(script: str, names: tuple[str, ...]) -> dict[str, list[str]]:
    """Command lines that start this script again, once per contender, with the user's own options."""
    return {name: [sys.executable, script, *sys.argv[1:], "--worker", name] for name in names}


def print_table(header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    """A table in Markdown, as docs/performance.md has it."""
    for cells in (header, ("---",) * len(header), *rows):
        print("|", " | ".join(map(str, cells)), "|")


def _start(words: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _write(process: subprocess.Popen[str]) -> None:
    assert process.stdin
    process.stdin.write("\n")
    process.stdin.flush()


def _read(name: str, process: subprocess.Popen[str]) -> dict[str, float]:
    assert process.stdout
    if not (line := process.stdout.readline()):
        raise SystemExit(f"{name} ended with status {process.wait()}: see its message above.")
    return json.loads(line)


def _peak_mb() -> float:
    with open("/proc/self/status", encoding="utf-8") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1e3
