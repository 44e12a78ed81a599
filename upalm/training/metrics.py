"""Metrics of a run in metrics.jsonl, TensorBoard and W&B."""

import hashlib
import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from upalm.distributed.processes import is_first
from upalm.files import parse_json, write_atomically


class TensorBoard:
    """Write event files into `folder`/tensorboard."""

    PACKAGE = "tensorboardX"

    def __init__(self, folder: Path):
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def rewind(self, step: int) -> None:
        """Have TensorBoard drop the points after `step`, also those of earlier files."""
        from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]

        # what `purge_step` writes, which needs a new file: one of the same second would replace this one
        start = Event(step=step + 1, session_log=SessionLog(status=SessionLog.START))
        self._writer.file_writer.add_event(start)  # pyright: ignore[reportOptionalMemberAccess]

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write the numbers after `step` steps, by name."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Finish writing."""
        self._writer.close()


class Wandb:
    """Log to Weights & Biases, configured by its environment variables (WANDB_PROJECT, WANDB_MODE, ...)."""

    PACKAGE = "wandb"

    def __init__(self, folder: Path):
        import wandb

        number = hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:12]  # a resumed run is the same run
        self._run = wandb.init(dir=str(folder), name=folder.name, id=number, resume="allow")
        # W&B's own count of steps must rise, and ignores what is logged after a rewind
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def rewind(self, step: int) -> None:
        """Keep the points after `step`, which W&B cannot drop; new ones stand beside them."""

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write the numbers after `step` steps, by name."""
        self._run.log({"step": step, **values})

    def close(self) -> None:
        """Finish writing."""
        self._run.finish()


OF_THE_MACHINE = {"tokens_per_second", "mfu", "data_wait", "checkpoint_seconds", "memory_gb"}
"""Metrics that differ between equal runs, because they measure the machine."""

WRITERS = {"tensorboard": TensorBoard, "wandb": Wandb}
"""Places that metrics are written to, beside metrics.jsonl."""


def check_writers(names: Sequence[str]) -> None:
    """Refuse writers whose packages are not installed, on the first process, which writes.

    Raises:
        ValueError: how to install them.
    """
    missing = [name for name in names if find_spec(WRITERS[name].PACKAGE) is None]
    if missing and is_first():
        raise ValueError(f"--logging.writers {' '.join(missing)} needs: pip install 'upalm[loggers]'.")


class Metrics:
    """Write metrics.jsonl, and to other writers, on the first process.

    Lines after `first_step`, which an interrupted run left, are dropped; events are kept.

    Args:
        path: of metrics.jsonl.
        first_step: steps done.
        writers: names in `WRITERS`.
    """

    def __init__(self, path: Path, first_step: int, writers: Sequence[str] = ()):
        self._file, self._writers = None, []
        if not is_first():
            return
        check_writers(writers)
        self._path, self._writers = path, [WRITERS[name](path.parent) for name in writers]
        self.rewind(first_step)

    def rewind(self, step: int) -> None:
        """Drop the lines after `step`, but for events, and the points of writers that can drop them."""
        if not is_first():
            return
        self._close_file()
        kept = []
        if self._path.is_file():
            kept = [row for row in read(self._path) if row["step"] <= step or "event" in row]
        write_atomically(self._path, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = self._path.open("a", encoding="utf-8")
        for writer in self._writers:
            writer.rewind(step)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Write one line, with numbers rounded to six digits."""
        if self._file is None:
            return
        rounded = {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in values.items()}
        self._file.write(json.dumps({"step": step, **rounded}) + "\n")
        self._file.flush()
        numbers = {k: float(v) for k, v in rounded.items() if isinstance(v, int | float)}
        for writer in self._writers:
            writer.write(step, numbers)

    def close(self) -> None:
        """Close the file and the other writers."""
        self._close_file()
        for writer in self._writers:
            writer.close()

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def read(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a metrics.jsonl; those that a crash damaged are left out."""
    rows = map(_parse, path.read_text(encoding="utf-8", errors="replace").split("\n"))
    return [row for row in rows if isinstance(row, dict) and "step" in row]


def _parse(line: str) -> Any:
    try:
        return parse_json(line)
    except ValueError:
        return None
