"""Seconds from a cold start to a first answer, and where they go, as the tables of docs/performance.md.

    python benchmarks/first_answers.py
    python benchmarks/first_answers.py --beside OTHER_CHECKOUT

Every start is a process of its own; the checkouts take turns. Processor time (user and system) is printed beside the
wall clock, because a shared machine changes the clock alone. stages.py takes the second table, in starts of its own.
"""

import argparse
import inspect
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import tyro
from stages import STAGES

HERE = Path(__file__).parents[1]
FIT = "try: from upalm.training import fit\nexcept ImportError: from upalm.loop import fit"


@dataclass(frozen=True)
class Case:
    rounds: int = 5
    """Starts of each kind, after one that is not counted and leaves its compiled programs."""
    beside: Path | None = None
    """Another checkout, to compare with."""


class Start(NamedTuple):
    title: str
    words: tuple[str, ...]
    """Of the command line, or `-c` and code."""
    until: str = ""
    """The process is killed when it says so on stderr."""
    is_kept: bool = True
    """Whether compiled programs are kept from start to start."""


def starts(folder: Path) -> list[Start]:
    base = ("--checkpoint", str(HERE / "upalm" / "assets" / "palm_tiny"))
    infill = ("infill", *base, "--text", "def f(<extra_id_0>):", "--max-new-tokens", "16")
    train = ("run", "palm_tiny", "tiny", "--out", str(folder / "run"), "--data.source", str(folder / "text.txt"))
    return [
        Start("`upalm --help`", ("--help",)),
        Start("`upalm infill --help`", ("infill", "--help")),
        Start("`import upalm`", ("-c", "import upalm")),
        Start("`import upalm.ul2r`", ("-c", "import upalm.ul2r")),
        Start("`import upalm.training`", ("-c", "import upalm.training")),
        Start("`from upalm.training import fit`", ("-c", FIT)),
        Start("`upalm infill`, the shipped model", infill),
        Start("the same, no programs kept", infill, is_kept=False),
        Start("`upalm run palm_tiny tiny`, first step", train, "train 1/"),
        Start("the same, no programs kept", train, "train 1/", is_kept=False),
    ]


def run(command: list[str], start: Start, folder: Path, checkout: Path) -> tuple[float, float]:
    """Wall and processor seconds of a process."""
    shutil.rmtree(folder / "run", ignore_errors=True)
    cache = folder / f"cache of {checkout.name}"
    if not start.is_kept:
        shutil.rmtree(cache, ignore_errors=True)
    env = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    env |= {"PYTHONPATH": str(checkout), "XDG_CACHE_HOME": str(cache)}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, *command], cwd=checkout, env=env, text=True, **pipes) as process:
        said = ""
        for line in process.stderr:
            said += line
            if start.until and start.until in line:
                process.kill()
                break
        seconds = time.monotonic() - began if start.until else None
    if process.returncode not in (0, -9 if start.until else 0):
        sys.exit(said)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds or time.monotonic() - began, used


def stages(start: Start, folder: Path) -> dict[str, float]:
    """Seconds of one start by stage."""
    out = folder / "stages.json"
    command = [str(HERE / "benchmarks" / "stages.py"), str(time.time()), str(out), start.until, *start.words]
    run(command, start._replace(until=""), folder, HERE)
    return json.loads(out.read_text())


def main(case: Case) -> None:
    checkouts = [HERE, *([case.beside.resolve()] if case.beside else [])]
    with tempfile.TemporaryDirectory() as name:
        folder, by_stage = Path(name), {}
        (folder / "text.txt").write_text("".join(map(inspect.getsource, (argparse, inspect, shutil))))
        print("| start | seconds | processor |" + (" seconds beside | ratio |" if case.beside else ""))
        print("| --- | --- | --- |" + (" --- | --- |" if case.beside else ""))
        for start in starts(folder):
            command = [*start.words] if start.words[0] == "-c" else ["-m", "upalm", *start.words]
            taken = [[run(command, start, folder, c) for c in checkouts] for _ in range(case.rounds + 1)][1:]
            clock, used = ([statistics.median(x[c][i] for x in taken) for c in range(len(checkouts))] for i in (0, 1))
            beside = f" {clock[1]:.2f} | {clock[0] / clock[1]:.2f} |" if case.beside else ""
            print(f"| {start.title} | {clock[0]:.2f} | {used[0]:.2f} |{beside}", flush=True)
            found = [stages(start, folder) for _ in range(case.rounds + 1)][1:]
            by_stage[start] = [statistics.median(x[stage] for x in found) for stage in STAGES]
        print("\n| seconds of | " + " | ".join(STAGES) + " |\n| --- |" + " --- |" * len(STAGES))
        for start, seconds in by_stage.items():
            print(f"| {start.title} | " + " | ".join(f"{s:.2f}" for s in seconds) + " |")


if __name__ == "__main__":
    main(tyro.cli(Case, description=__doc__))
