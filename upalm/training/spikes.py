"""Loss spikes: detect them, and PaLM's remedy: go back about 100 steps and skip batches (PaLM section 5.1)."""

import json
import math
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from upalm.checks import check_choices
from upalm.distributed.processes import broadcast_from_first
from upalm.files import parse_json, write_atomically

_FILE = "skipped.json"


@dataclass(frozen=True)
class SpikeConfig:
    """Detection of loss spikes, and the remedy."""

    threshold: float = 0.0
    """Nats above the recent median from which a loss is a spike; 0 detects only losses that are not finite."""
    window: int = 100
    """Recent losses in the median; at least a quarter of them must have been seen."""
    remedy: Literal["stop", "rewind"] = "stop"
    """`stop` with step and batch, or `rewind` to a checkpoint and skip batches (PaLM section 5.1)."""
    rewind_steps: int = 100
    """Minimum steps to go back: to the newest checkpoint at least this far before the spike."""
    skip_batches: int = 300
    """Batches to skip from there; PaLM skipped 200 to 500."""
    most: int = 20
    """Maximum number of rewinds before a run stops; PaLM 540B had about 20."""

    def __post_init__(self):
        check_choices(self)
        counts_fit = self.window >= 4 and min(self.rewind_steps, self.skip_batches, self.most) >= 1
        if not (0 <= self.threshold < math.inf and counts_fit):
            raise ValueError(
                f"{self}: expected threshold at least 0, window at least 4, "
                "rewind_steps, skip_batches and most at least 1."
            )


class LossSpike(Exception):
    """Raised when the loss or its gradient is not finite, or the loss jumps."""

    def __init__(self, step: int, loss: float, grad_norm: float, usual: float):
        super().__init__(step, loss, grad_norm, usual)
        self.step, self.loss, self.grad_norm, self.usual = step, loss, grad_norm, usual

    def __str__(self) -> str:
        usual = f", usual loss {self.usual:.3f}" if math.isfinite(self.usual) else ""
        return f"loss {self.loss:.4g}, gradient norm {self.grad_norm:.4g}{usual} at step {self.step}"


class SpikeDetector:
    """Compares each loss with the median of the losses before it.

    Checkpoints do not hold these: a resumed run finds no jump until it has seen a quarter of the window again.
    """

    def __init__(self, config: SpikeConfig):
        self._config, self._losses = config, deque(maxlen=config.window)

    def __call__(self, step: int, loss: float, grad_norm: float) -> None:
        """Check the loss after `step` steps.

        Raises:
            LossSpike: the loss is not finite, or lies more than the threshold above the median.
        """
        enough = len(self._losses) >= self._config.window // 4
        usual = statistics.median(self._losses) if enough else math.nan
        jumps = self._config.threshold > 0 and enough and loss > usual + self._config.threshold
        if jumps or not math.isfinite(loss + grad_norm):
            raise LossSpike(step, loss, grad_norm, usual)
        self._losses.append(loss)


class Skip(NamedTuple):
    """A number of batches that are left out from a step on."""

    at_step: int
    n_batches: int


def choose_remedy(spike: LossSpike, config: SpikeConfig, steps: Sequence[int], n_applied: int, what: str) -> Skip:
    """Choose the checkpoint to go back to and the batches to skip from there (PaLM section 5.1).

    Args:
        spike: the loss spike.
        config: the remedy.
        steps: steps of the run's checkpoints, newest first.
        n_applied: remedies applied so far.
        what: begins the error messages.

    Raises:
        FloatingPointError: the remedy is to stop, was applied too often, or there is no checkpoint to go back to.
    """
    if config.remedy == "stop":
        raise FloatingPointError(f"{what}. Lower the learning rate, or let the run go back: --spikes.remedy rewind.")
    earlier = [step for step in steps if step <= spike.step - config.rewind_steps]
    if not earlier:
        raise FloatingPointError(
            f"{what}. No checkpoint is {config.rewind_steps} steps before the spike: save more often and keep more "
            "(--save-every, --checkpoints.last), or lower --spikes.rewind-steps."
        )
    if n_applied >= config.most:
        raise FloatingPointError(f"{what}. Batches were skipped {n_applied} times already (--spikes.most).")
    return Skip(earlier[0], config.skip_batches)


def read_skips(folder: Path) -> list[Skip]:
    """Skips of a run so far, as the first process's disk records them.

    Raises:
        ValueError: skipped.json is damaged.
    """
    path = folder / _FILE
    text = broadcast_from_first(path.read_text(encoding="utf-8", errors="replace") if path.is_file() else "[]")
    try:
        return [Skip(int(at_step), int(n_batches)) for at_step, n_batches in parse_json(text)]
    except (TypeError, ValueError) as e:
        raise ValueError(f"{path} is damaged: expected [[step, batches], ...], got {text[:50]!r}.") from e


def write_skips(folder: Path, skips: Sequence[Skip]) -> None:
    """Record the skips of a run."""
    write_atomically(folder / _FILE, json.dumps([list(s) for s in skips]) + "\n")
