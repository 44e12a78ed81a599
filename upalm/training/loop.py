"""`fit`, the loop over steps: it saves, reports, goes back on a loss spike, and goes on after an interruption."""

import math
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from upalm.checkpoints.folder import describe, description
from upalm.checkpoints.lineage import stages
from upalm.checkpoints.manager import Checkpoints
from upalm.data.config import Corpus, Weighted, manifests
from upalm.data.loader import Loader
from upalm.data.tokenizer import Tokenizer
from upalm.distributed import processes
from upalm.distributed.chips import chip_of
from upalm.distributed.sharding import rows_here, shardings, to_devices
from upalm.model.config import ModelConfig
from upalm.model.palm import LOGICAL_AXES, Decoder
from upalm.training import metrics, progress
from upalm.training.config import Continue, TrainConfig, differences, to_json
from upalm.training.spikes import LossSpike, Skip, SpikeDetector, read_skips, write_skips
from upalm.training.step import StepMetrics, TrainState, evaluate, train_step
from upalm.ul2r.rows import Batch


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM arrived; the run is saved and can be resumed."""


def check_folder(config: TrainConfig) -> None:
    """Refuse a folder that holds another run, unless `changed` says so.

    Raises:
        ValueError: with the settings that differ.
    """
    if not config.out.exists() or not (config.out / "config.json").is_file():
        if config.out.exists() and any(config.out.iterdir()) and processes.is_first():
            description(config.out)  # says what is wrong
        return
    _refuse_changes(config, description(config.out)["run"], config.out)


def _refuse_changes(config: TrainConfig, there: dict[str, Any], where: object) -> None:
    found = differences(there, config.identity())
    if found and not config.changed:
        raise ValueError(
            f"{where} holds a run with other settings ({'; '.join(found)}). Choose another --out, or go on with "
            "these all the same: --changed."
        )
    if found and processes.is_first():
        print(f"warning: going on with other settings: {'; '.join(found)}", file=sys.stderr)


def fit(
    config: TrainConfig,
    model: Decoder,
    tokenizer: Tokenizer,
    train: Corpus | Sequence[Weighted],
    validation: Corpus | Sequence[Weighted],
    *,
    title: str = "train",
) -> Decoder:
    """Train from `model`, or go on from the newest checkpoint that can be read. Returns the trained model.

    Raises:
        Interrupted: on Ctrl-C or SIGTERM, after a checkpoint was written.
        FloatingPointError: the loss is not finite, or a spike; step, batch and last good checkpoint are named.
        OSError: a checkpoint could not be written; the one before is intact.
        ValueError: a folder of another run, a mesh that does not divide, or checkpoints that cannot be read.
    """
    check_folder(config)
    return _Run(config, model, tokenizer, train, validation, title).to_the_end()


class _Run:
    """A run in progress: what its loop shares with its saving, reporting and going back."""

    def __init__(self, config: TrainConfig, model: Decoder, tokenizer: Tokenizer, train, validation, title: str):
        mesh = jax.sharding.get_mesh()
        self.config, self.mesh, self.title = config, None if mesh.empty else mesh, title
        rows = {n: rows_here(self.mesh, n, config.accumulation) for n in config.data.batch_sizes()}
        first = config.data.batch_sizes()[:1]
        self.skips = read_skips(config.out)
        options = {"symbols": tokenizer.symbols, "seed": config.seed}
        self.make_loader = partial(Loader, train, config.data, rows=rows, **options)
        self.loader = self.make_loader(skips=self.skips)
        steady = replace(config.data, batch_ramp=())  # held-out batches are of one size
        self.held_out = Loader(validation, steady, rows={n: rows_here(self.mesh, n, 1) for n in first}, **options)
        self.n_denoisers = len(self.loader.segmenters)
        self.names = [s.denoiser.name for s in self.loader.segmenters]
        self._describe(model, tokenizer)
        self.tokenizer_hash = tokenizer.hash
        self.optimizer = config.optimizer.build(config.n_steps)
        self.checkpoints = Checkpoints(
            config.checkpoints.folder or config.out, keep=config.checkpoints.last, keep_every=config.checkpoints.every
        )
        self.step, self.state = self._first_state(model)
        writers = config.logging.writers
        self.log = metrics.Metrics(config.out / "metrics.jsonl", self.step, writers)
        self.model_config = model.config
        self.requests, self.saved_at = processes.Requests(self.mesh), time.monotonic()
        self.watch, self.clock = SpikeDetector(config.spikes), _Clock()

    def _describe(self, model: Decoder, tokenizer: Tokenizer) -> None:
        mixture = self.loader.mixture
        inputs_eos = tokenizer.inputs_eos or any(d.inputs_eos for d in mixture)
        gaps_trained = bool(tokenizer.gaps_trained) or any(d.n_sentinels(self.config.data.seq_len) for d in mixture)
        learnt = tokenizer.trained(inputs_eos=inputs_eos, gaps_trained=gaps_trained)
        made_of = manifests(self.config.data.source)
        identity, settings = self.config.identity(), to_json(self.config)
        start = self.config.start
        before = stages(start.checkpoint) if isinstance(start, Continue) else None
        describe(self.config.out, model.config, learnt, identity, made_of, settings, before)

    # --- Begin, save, go back ---

    def _first_state(self, model: Decoder) -> tuple[int, TrainState]:
        """From the newest checkpoint that can be read; else from the model, copied, since a step donates its input."""
        fresh = self._fresh(model)
        found = self._restored(fresh)
        if found is not None:
            return found
        return 0, TrainState(jax.tree.map(jnp.copy, model), fresh.opt_state)

    def _fresh(self, model: Decoder) -> TrainState:
        init: Any = self.optimizer.init
        if self.mesh is None:
            return TrainState(model, init(model))
        laid = shardings(jax.eval_shape(init, model), LOGICAL_AXES, self.mesh)
        return TrainState(model, jax.jit(init, out_shardings=laid)(model))

    def _restored(self, like: TrainState) -> tuple[int, TrainState] | None:
        self._refuse_another_run()

        def read(step: int) -> TrainState:
            model, opt_state = (
                self.checkpoints.restore(n, x, step) for n, x in zip(("model", "optimizer"), like, strict=True)
            )
            return TrainState(model, opt_state)

        found = self.checkpoints.newest(read)
        if found is not None and (damaged := self.checkpoints.discard_after(found[0], "damaged")):
            print(f"warning: checkpoints {damaged} are now in {self.config.out / 'damaged'}", file=sys.stderr)
        return found

    def _refuse_another_run(self) -> None:
        """Compare with what the newest checkpoint says of its run."""
        for step in self.checkpoints.steps():
            try:
                about = self.checkpoints.about(step)
            except ValueError:
                continue  # damaged: that is said when it is read
            if "run" in about:
                _refuse_changes(self.config, about["run"], f"{self.checkpoints.folder}/{step}")
            if about.get("tokenizer", self.tokenizer_hash) != self.tokenizer_hash:
                raise ValueError(
                    f"{self.checkpoints.folder}/{step} was trained with tokenizer {about['tokenizer']}, this run has "
                    f"{self.tokenizer_hash}: put the right tokenizer back, or choose another --out."
                )
            return

    def _save(self) -> None:
        started = time.monotonic()
        about = {"run": self.config.identity(), "tokenizer": self.tokenizer_hash}
        self.checkpoints.save(self.step, self.state.model, self.state.opt_state, about)
        self.saved_at = time.monotonic()
        self.clock.checkpoint_seconds += self.saved_at - started

    def _remedy(self, spike: LossSpike) -> None:
        """Go back, and leave out the batches from there (PaLM section 5.1); or say what is to be done.

        Raises:
            FloatingPointError: the remedy is to stop, was applied too often, or there is no checkpoint to go back to.
        """
        config = self.config.spikes
        self.checkpoints.wait()
        earlier = [k for k in self.checkpoints.steps() if k <= spike.step - config.rewind_steps]
        batch = f"batch {spike.step - 1}, rows from {self.loader.first_row(spike.step - 1)}"
        last = f"the last good checkpoint is {self.checkpoints.folder}/{self.checkpoints.latest()}"
        last = last if self.checkpoints.latest() else "there is no checkpoint"
        what = f"{spike} ({batch}) of {self.config.out}; {last}"
        if config.remedy == "stop":
            raise FloatingPointError(
                f"{what}. Lower the learning rate, or let the run go back: --spikes.remedy rewind."
            )
        if not earlier:
            raise FloatingPointError(
                f"{what}. None is {config.rewind_steps} steps before: save more often and keep more."
            )
        if len(self.skips) >= config.most:
            raise FloatingPointError(f"{what}. Batches were skipped {len(self.skips)} times already.")
        to = earlier[0]
        # before the skip is written: after a crash in between, the run finds the spike again
        self.checkpoints.discard_after(to, "before_rewind")
        self.skips = [*self.skips, Skip(to, config.skip_batches)]
        if processes.is_first():
            write_skips(self.config.out, self.skips)
        found = self._restored(self.state)
        if found is None:
            raise FloatingPointError(f"{what}. Checkpoint {to} is gone.")
        self.step, self.state = found
        self.loader = self.make_loader(skips=self.skips)
        self.watch = SpikeDetector(config)
        self.log.rewind(self.step)
        event = {
            "event": "rewind",
            "spike_step": spike.step,
            "spike_loss": str(spike.loss),
            "skipped_batches": config.skip_batches,
        }
        self.log.write(self.step, event)
        if processes.is_first():
            print(
                f"warning: {what}. Back at step {self.step}, leaving out {config.skip_batches} batches.",
                file=sys.stderr,
            )

    # --- Go on ---

    def to_the_end(self) -> Decoder:
        """All steps that are left."""
        with ExitStack() as stack:
            stack.callback(self.log.close)
            stack.callback(self.checkpoints.close)
            interrupted = stack.enter_context(_interruptible())
            bar = stack.enter_context(
                progress.Bar(self.title, self.config.n_steps, self.step, quiet=not processes.is_first())
            )
            stop = False
            while self.step < self.config.n_steps and not stop:
                try:
                    stop = self._steps(interrupted, bar)
                except LossSpike as spike:
                    self._remedy(spike)
        if self.step < self.config.n_steps:
            raise Interrupted(f"saved after step {self.step} in {self.config.out}; run the same command to go on.")
        return self.state.model

    def _steps(self, interrupted: threading.Event, bar: progress.Bar) -> bool:
        """Steps until the end, or until a process is asked to stop; whether it was."""
        config, pending, asked = self.config, None, 0
        alone = jax.process_count() == 1
        batches = iter(self.loader.batches(self.step, config.n_steps))
        while self.step < config.n_steps:
            batch = self._next(batches)
            self._profile()
            bits = processes.STOP * interrupted.is_set() + processes.SAVE * self._is_due()
            self.state, reported = train_step(
                *(self.state, batch, self.requests(bits)), optimizer=self.optimizer, n_denoisers=self.n_denoisers
            )
            if pending is not None:  # read the metrics of the step before while this one runs
                note, asked = self._report(pending)
                bar.update(self.step, note)
            self.step, pending = self.step + 1, reported
            if self.step % config.eval_every == 0 or self.step == config.n_steps:
                self.log.write(self.step, {"validation_loss": self._validate()})
            if alone:
                asked = processes.STOP * interrupted.is_set() + processes.SAVE * self._is_due()
            if asked or self.step % config.save_every == 0 or self.step == config.n_steps:
                note, _ = self._report(pending)
                bar.update(self.step, note)
                pending = None
                bar.say(f"checkpoint {self.step} is being written")
                self._save()
                if asked & processes.STOP and self.step < config.n_steps:
                    return True
                asked = 0
        return False

    def _next(self, batches: Iterator[Batch]) -> Batch:
        started = time.monotonic()
        rows = next(batches)
        self.clock.wait_seconds += time.monotonic() - started
        n = self.config.data.batch_size_at(self.step)
        self.clock.tokens = n * self.config.data.seq_len
        numbers = self.loader.rows[n] if self.loader.rows is not None else np.arange(n)
        return to_devices(self.mesh, rows, numbers, n, self.config.accumulation)

    def _validate(self) -> float:
        n = self.config.data.batch_size
        numbers = rows_here(self.mesh, n, 1)
        batches = (self.held_out.batch(k) for k in range(self.config.eval_batches))
        return evaluate(self.state.model, (to_devices(self.mesh, b, numbers, n, 1) for b in batches), self.n_denoisers)

    def _is_due(self) -> bool:
        """Whether the first process has been without a checkpoint for long enough."""
        minutes = self.config.checkpoints.minutes
        return bool(minutes and processes.is_first() and time.monotonic() - self.saved_at > 60 * minutes)

    def _profile(self) -> None:
        first, last = self.config.logging.profile
        if first and self.step + 1 == first:
            jax.profiler.start_trace(str(self.config.out / "profile"))
        elif first and self.step == last:
            jax.block_until_ready(self.state)
            jax.profiler.stop_trace()

    def _report(self, reported: StepMetrics) -> tuple[str, int]:
        """Write the metrics after `self.step` steps; a note for the progress line, and what any process asks.

        Raises:
            LossSpike: the loss is one.
        """
        step, config = self.step, self.config
        sums, grad_norm, asked = jax.device_get(reported)
        tokens_per_second = self.clock.tick()
        loss = float(sums.nll.sum() / max(sums.weight.sum(), 1))
        self.watch(step, loss, float(grad_norm))
        if step % config.log_every == 0 or step == config.n_steps:
            rate = np.asarray(config.optimizer.schedule.build(config.n_steps)(step - 1)).item()
            by_denoiser = {f"loss_{n}": float(a / w) for n, a, w in zip(self.names, *sums, strict=True) if w > 0}
            values = {"loss": loss, **by_denoiser, "grad_norm": float(grad_norm), "learning_rate": rate}
            self.log.write(step, values | self.clock.report(tokens_per_second, self.model_config))
        return f"loss {loss:.3f}  {tokens_per_second:,.0f} tokens/s", int(asked)


class _Clock:
    """Tokens a second since the first step, whose compilation does not count; and where the rest of the time went."""

    def __init__(self):
        self.tokens, self.wait_seconds, self.checkpoint_seconds = 0, 0.0, 0.0
        self._start, self._total = math.nan, 0

    def tick(self) -> float:
        """A step is done."""
        if math.isnan(self._start):
            self._start, self.wait_seconds = time.monotonic(), 0.0
            return math.nan
        self._total += self.tokens
        return self._total / (time.monotonic() - self._start)

    def report(self, tokens_per_second: float, model: ModelConfig) -> dict[str, Any]:
        """Of the time since the first step; MFU is null where the chip's peak is unknown."""
        device, found = jax.local_devices()[0], {"memory_gb": memory_bytes() / 1e9}
        if math.isnan(tokens_per_second):
            return found
        chip, n = chip_of(device.device_kind), len(jax.devices())
        seconds = max(time.monotonic() - self._start, 1e-9)
        return found | {
            "tokens_per_second": tokens_per_second,
            "mfu": None if chip is None else model.mfu(tokens_per_second, n, chip.flops),
            "data_wait": self.wait_seconds / seconds,
            "checkpoint_seconds": self.checkpoint_seconds,
        }


def memory_bytes() -> int:
    """Most memory that this process's first device has used; of the process, where the device does not say."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use") or 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """The first Ctrl-C (or SIGTERM) sets the event, so that the step in flight ends; the second stops at once."""
    event, previous = threading.Event(), {}

    def handle(number: int, frame: object) -> None:
        event.set()
        signal.signal(number, previous[number])

    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.signal(number, handle)
    try:
        yield event
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
