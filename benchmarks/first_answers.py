"""Seconds from a cold start to a first answer, with compiled programs kept; and which imports they go to.

    python benchmarks/first_answers.py --rounds 5
    python benchmarks/first_answers.py --beside OTHER_CHECKOUT

Every start is a process of its own; the checkouts take turns. Processor time (user and system) is printed beside the
wall clock, because a shared machine changes the clock alone.
"""

import argparse
import inspect
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import tyro

HERE = Path(__file__).parents[1]
BASE = HERE / "upalm" / "assets" / "palm_tiny"


FIT = "try: from upalm.training import fit\nexcept ImportError: from upalm.loop import fit"


@dataclass(frozen=True)
class Case:
    rounds: int = 5
    """Starts of each kind, after one that is not counted."""
    beside: Path | None = None
    """Another checkout, to compare with."""
    imports: bool = True
    """Print which packages the imports of each start take, too."""


def starts(folder: Path) -> dict[str, list[str]]:
    infill = ["infill", "-c", str(BASE), "--text", "def f(<extra_id_0>):", "--max-new-tokens", "16"]
    train = ["--out", str(folder / "run"), "--data.source", str(folder / "text.txt"), "--n-steps", "1"]
    return {
        "upalm --help": ["-m", "upalm", "--help"],
        "upalm infill --help": ["-m", "upalm", "infill", "--help"],
        "upalm infill": ["-m", "upalm", *infill],
        "import upalm": ["-c", "import upalm"],
        "import upalm.ul2r": ["-c", "import upalm.ul2r"],
        "import upalm.training, fit": ["-c", FIT],
        "upalm run palm_tiny, one step": ["-m", "upalm", "run", "palm_tiny", "tiny", *train],
    }


def seconds(words: list[str], checkout: Path, cache: Path) -> tuple[float, float]:
    """Wall and processor seconds of a Python process."""
    env = os.environ | {"PYTHONPATH": str(checkout), "JAX_COMPILATION_CACHE_DIR": str(cache)}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run([sys.executable, *words], cwd=checkout, env=env, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.monotonic() - began, used


def imports(words: list[str], checkout: Path) -> str:
    """Milliseconds of imports by package, largest first."""
    env = os.environ | {"PYTHONPATH": str(checkout), "GLIBC_TUNABLES": ""}
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *words], cwd=checkout, env=env, capture_output=True, text=True
    )
    by_package: Counter[str] = Counter()
    for line in done.stderr.splitlines():
        if line.startswith("import time:") and "|" in line and "[us]" not in line:
            own, _, name = line.removeprefix("import time:").split("|")
            by_package[name.strip().split(".")[0]] += int(own) // 1000
    return ", ".join(f"{name} {ms}" for name, ms in by_package.most_common(8) if ms)


def main(case: Case) -> None:
    checkouts = {"here": HERE} | ({"beside": case.beside.resolve()} if case.beside else {})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "text.txt").write_text("".join(map(inspect.getsource, (argparse, inspect, shutil))))
        for title, words in starts(folder).items():
            taken = {name: [] for name in checkouts}
            for i in range(case.rounds + 1):
                for which, checkout in checkouts.items():
                    shutil.rmtree(folder / "run", ignore_errors=True)
                    one = seconds(words, checkout, folder / which)
                    if i:
                        taken[which].append(one)
            clock, used = ({k: statistics.median(x[i] for x in v) for k, v in taken.items()} for i in (0, 1))
            print(f"{title}: " + "; ".join(f"{k} {clock[k]:.2f} s, processor {used[k]:.2f} s" for k in taken), end="")
            print(f"; ratio {used['here'] / used['beside']:.2f}" if case.beside else "", flush=True)
            if case.imports:
                print(f"    imports, ms: {imports(words, HERE)}", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Case, description=__doc__))
