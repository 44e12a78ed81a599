"""StepLog: the metrics of each step, read while the next step runs, and what the machine achieved."""

import math
import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from upalm.distributed import processes
from upalm.distributed.chips import chip_of
from upalm.model.config import ModelConfig
from upalm.training import metrics, progress
from upalm.training.config import TrainConfig
from upalm.training.spikes import SpikeDetector
from upalm.training.step import StepMetrics, TrainState


def start_profile(folder: Path) -> None:
    """Start a profile of devices and of JAX's own calls; `jax.profiler.stop_trace` writes it to a folder.

    Python's calls are left out: JAX would walk through the states of all Python threads to watch them, and crashes when
    a native thread, of a loader or a checkpoint's writer, comes or goes meanwhile (jaxlib 0.10.2).
    """
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    jax.profiler.start_trace(str(folder), profiler_options=options)


class StepLog:
    """Progress line, metrics.jsonl and loss spikes of a run.

    Args:
        config: of the run.
        model: its shape, for MFU.
        denoisers: names, in the order of the loss sums.
        step: steps done; later lines of metrics.jsonl are dropped.
        title: begins the progress line.
    """

    def __init__(self, config: TrainConfig, model: ModelConfig, denoisers: Sequence[str], step: int, title: str):
        self._config, self._model, self._denoisers, self._first_step = config, model, denoisers, step
        self._pending: tuple[int, StepMetrics, int] | None = None
        self._metrics = metrics.Metrics(config.out / "metrics.jsonl", step, config.logging.writers)
        self._bar = progress.Bar(title, config.n_steps, step, quiet=not processes.is_first())
        self._throughput, self._is_tracing = Throughput(), False
        self._check_spike = SpikeDetector(config.spikes)
        self._learning_rate = config.optimizer.schedule.build(config.n_steps)

    def __enter__(self) -> "StepLog":
        self._bar.__enter__()
        if self._first_step < self._config.n_steps:
            self._bar.update(self._first_step, "compiling")
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_profile()
        self._bar.__exit__()
        self._metrics.close()

    def say(self, message: str) -> None:
        """Print a line of its own."""
        self._bar.say(message)

    def waiting(self) -> AbstractContextManager[None]:
        """Count the time of a block as spent waiting for data."""
        return self._throughput.time("data")

    def saving(self, step: int) -> AbstractContextManager[None]:
        """Say that the checkpoint after `step` steps is being written, and count the time of a block as spent on it."""
        self.say(f"checkpoint {step} is being written")
        return self._throughput.time("checkpoint")

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Write other values after `step` steps."""
        self._metrics.write(step, values)

    def profile(self, step: int, state: TrainState) -> None:
        """Start or stop the profile, if the step after `step` steps is its first or follows its last."""
        first, last = self._config.logging.profile
        if self._is_tracing and step >= last:
            jax.block_until_ready(state)
            self._stop_profile()
        elif first and first <= step + 1 <= last and not self._is_tracing:
            start_profile(self._config.out / "profile")
            self._is_tracing = True

    def _stop_profile(self) -> None:
        if self._is_tracing:
            self._is_tracing = False
            jax.profiler.stop_trace()

    def expect(self, step: int, reported: StepMetrics, n_tokens: int) -> None:
        """Remember the metrics of the step just dispatched, without waiting for it."""
        self._pending = step, reported, n_tokens

    def read(self) -> None:
        """Wait for the step that is expected, if any; log its metrics and show progress.

        Raises:
            LossSpike: its loss is not finite, or jumps.
        """
        if self._pending is None:
            return
        (step, reported, n_tokens), self._pending = self._pending, None
        sums, grad_norm = jax.device_get(reported)
        tokens_per_second = self._throughput.tick(n_tokens)
        loss = float(sums.nll.sum() / max(sums.weight.sum(), 1))
        self._check_spike(step, loss, float(grad_norm))
        if step % self._config.log_every == 0 or step == self._config.n_steps:
            columns = zip(self._denoisers, *sums, strict=True)
            by_denoiser = {f"loss_{name}": float(nll / weight) for name, nll, weight in columns if weight > 0}
            rate = np.asarray(self._learning_rate(step - 1)).item()
            values = {"loss": loss, **by_denoiser, "grad_norm": float(grad_norm), "learning_rate": rate}
            self._metrics.write(step, values | self._throughput.report(self._model, self._config.data.seq_len))
        speed = "" if tokens_per_second is None else f"  {tokens_per_second:,.0f} tokens/s"
        self._bar.update(step, f"loss {loss:.3f}{speed}")

    def rewind(self, step: int, event: dict[str, Any]) -> None:
        """Drop the lines after `step`, and write the event that led back there."""
        self._pending, self._check_spike = None, SpikeDetector(self._config.spikes)
        self._metrics.rewind(step)
        self._metrics.write(step, event)


class Throughput:
    """Tokens per second since the end of the first step, so without compilation; and time spent beside training."""

    def __init__(self):
        self._seconds = {"data": 0.0, "checkpoint": 0.0}
        self._start, self._n_tokens = math.nan, 0
        self.tokens_per_second: float | None = None

    @contextmanager
    def time(self, what: str) -> Iterator[None]:
        """Count the time of a block as spent on `what`."""
        started = time.monotonic()
        yield
        self._seconds[what] += time.monotonic() - started

    def tick(self, n_tokens: int) -> float | None:
        """Count a finished step. Returns tokens per second, or None after the first step."""
        if math.isnan(self._start):
            self._start, self._seconds["data"] = time.monotonic(), 0.0
            return None
        self._n_tokens += n_tokens
        self.tokens_per_second = self._n_tokens / (time.monotonic() - self._start)
        return self.tokens_per_second

    def report(self, model: ModelConfig, seq_len: int) -> dict[str, Any]:
        """Metrics of the machine, for rows of `seq_len`; MFU is null for a chip of unknown peak."""
        memory = {"memory_gb": memory_bytes() / 1e9}
        if self.tokens_per_second is None:
            return memory
        chip, n = chip_of(jax.local_devices()[0].device_kind), len(jax.devices())
        seconds = max(time.monotonic() - self._start, 1e-9)
        return memory | {
            "tokens_per_second": self.tokens_per_second,
            "mfu": None if chip is None else model.mfu(self.tokens_per_second, n, chip.flops, seq_len),
            "data_wait": self._seconds["data"] / seconds,
            "checkpoint_seconds": self._seconds["checkpoint"],
        }


def memory_bytes() -> int:
    """Peak memory of this process's first device, or of the process if the device does not report it."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use") or 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
