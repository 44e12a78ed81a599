"""Loss spikes: what counts as one, and PaLM's remedy (section 5.1), to go back about 100 steps and skip batches."""

import json
import math
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from upalm.distributed.processes import broadcast_from_first
from upalm.files import write_atomically

_FILE = "skipped.json"


@dataclass(frozen=True)
class SpikeConfig:
    """What to do when the loss is not finite, or jumps."""

    threshold: float = 0.0
    """Nats above the median of the last losses from which on it is a spike; 0 looks for what is not finite only."""
    window: int = 100
    """Losses that the median is of; a quarter of them must be there."""
    remedy: Literal["stop", "rewind"] = "stop"
    """Stop, naming step and batch; or go back, skip batches, and go on (PaLM section 5.1)."""
    rewind_steps: int = 100
    """Least steps to go back: to the newest checkpoint that is this far before the spike."""
    skip_batches: int = 300
    """Batches to leave out from there; PaLM left out 200 to 500."""
    most: int = 20
    """Remedies after which a run stops all the same; PaLM 540B had about 20."""

    def __post_init__(self):
        if self.threshold < 0 or self.window < 4 or min(self.rewind_steps, self.skip_batches, self.most) < 1:
            raise ValueError(
                f"{self}: expected threshold at least 0, window at least 4, "
                "rewind_steps, skip_batches and most at least 1."
            )


class LossSpike(Exception):
    """A loss that is one."""

    def __init__(self, step: int, loss: float, grad_norm: float, usual: float):
        super().__init__(step, loss, grad_norm, usual)
        self.step, self.loss, self.grad_norm, self.usual = step, loss, grad_norm, usual

    def __str__(self) -> str:
        usual = f", usual loss {self.usual:.3f}" if math.isfinite(self.usual) else ""
        return f"loss {self.loss:.4g}, gradient norm {self.grad_norm:.4g}{usual} at step {self.step}"


class SpikeDetector:
    """Looks at every loss."""

    def __init__(self, config: SpikeConfig):
        self._config, self._losses = config, deque(maxlen=config.window)

    def __call__(self, step: int, loss: float, grad_norm: float) -> None:
        """Raises: LossSpike."""
        enough = len(self._losses) >= self._config.window // 4
        usual = statistics.median(self._losses) if enough else math.nan
        jumps = self._config.threshold > 0 and enough and loss > usual + self._config.threshold
        if jumps or not math.isfinite(loss + grad_norm):
            raise LossSpike(step, loss, grad_norm, usual)
        self._losses.append(loss)


class Skip(NamedTuple):
    """From step `at_step` on, `n_batches` more are left out."""

    at_step: int
    n_batches: int


def read_skips(folder: Path) -> list[Skip]:
    """Those that a run has made so far, as the first process's disk has them."""
    path = folder / _FILE
    return [Skip(*s) for s in json.loads(broadcast_from_first(path.read_text() if path.is_file() else "[]"))]


def write_skips(folder: Path, skips: Sequence[Skip]) -> None:
    """Keep them, whole or not at all."""
    write_atomically(folder / _FILE, json.dumps([list(s) for s in skips]) + "\n")
