"""Real training runs of several processes on this machine, with fake devices, started as a user starts them."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
from support.environment import with_devices

from upalm.checkpoints.arrays import to_arrays
from upalm.checkpoints.folder import load_model
from upalm.training.metrics import OF_THE_MACHINE

RECIPE = Path(__file__).with_name("pod_recipe.py")


class Pod:
    """A recipe to start runs with, and a place for their folders."""

    def __init__(self, folder: Path, data: Path):
        self.folder, self.data = folder, data

    def start(
        self, out: str, *words, n=1, devices=8, each=None, recipe=True, env=None, apart=False
    ) -> list[subprocess.Popen]:
        """All `n` processes of a run on `devices`; `each` gives words to one by its number.

        `apart`: each has a working folder of its own, as hosts have disks of their own, and `out` lies in it.
        """
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        anew = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}  # else a process starts itself anew
        started = []
        for i in range(n):
            command = [sys.executable, "-m", "upalm", "run"]
            settings = ["--out", out if apart else self.folder / out, "--data.source", self.data]
            command += map(str, [RECIPE, "tiny", *settings] if recipe else [])
            command += map(str, words)
            if n > 1:
                command += ["--processes.coordinator", f"127.0.0.1:{port}", "--processes.n-processes", str(n)]
                command += ["--processes.process-id", str(i), "--processes.heartbeat-seconds", "10"]
            command += map(str, (each or {}).get(i, ()))
            given = with_devices(devices // n) | anew | (env or {})
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            place = self.host(i) if apart else None
            started.append(subprocess.Popen(command, text=True, env=given, cwd=place, **pipes))
        return started

    def host(self, i: int) -> Path:
        """The working folder of process `i` when they are apart."""
        folder = self.folder / f"host{i}"
        folder.mkdir(exist_ok=True)
        return folder

    def finish(self, processes: list[subprocess.Popen], ok: bool | None = True) -> list[str]:
        """Wait for the processes; return what each said on stderr."""
        said = [p.communicate(timeout=300)[1] for p in processes]
        if ok is not None:
            assert all((p.returncode == 0) == ok for p in processes), "\n".join(x[-3000:] for x in said)
        return said

    def run(self, out: str, *words, **options) -> list[str]:
        """Run the processes to their end."""
        return self.finish(self.start(out, *words, **options))

    def params(self, out: str) -> dict[str, np.ndarray]:
        """Parameters of a run's newest checkpoint."""
        return {k: np.asarray(v) for k, v in to_arrays(load_model(self.folder / out)[0]).items()}

    def metrics(self, out: str) -> list[dict]:
        """Metrics of a run without those that differ between equal runs."""
        rows = [json.loads(line) for line in (self.folder / out / "metrics.jsonl").read_text().splitlines()]
        return [{k: v for k, v in row.items() if k not in OF_THE_MACHINE} for row in rows]


def wait_for(process: subprocess.Popen, text: str) -> None:
    """Read what a process says on stderr until this comes."""
    for line in process.stderr:
        if text in line:
            return
    raise AssertionError(f"the process ended (code {process.wait()}) before it said {text!r}")


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    """Whether two sets of arrays are equal to the bit."""
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)
