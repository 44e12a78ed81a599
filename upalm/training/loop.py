"""`fit`: train, log, validate and save, step by step; resume, and recover from loss spikes."""

import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import jax

from upalm.checkpoints import lock
from upalm.checkpoints.folder import describe
from upalm.checkpoints.lineage import CheckpointInfo, read_info
from upalm.checkpoints.manager import Checkpoints
from upalm.data.config import manifests
from upalm.data.tokenizer import Tokenizer
from upalm.distributed import processes
from upalm.distributed.processes import SAVE, STOP, Requests
from upalm.files import is_remote
from upalm.model.config import ModelConfig
from upalm.model.palm import Decoder
from upalm.training.config import Continue, TrainConfig, to_json
from upalm.training.feed import Corpora, Feed
from upalm.training.log import StepLog
from upalm.training.resume import LazyModel, check_checkpoints, check_folder, first_state, restore, resumed_folder
from upalm.training.spikes import LossSpike, choose_remedy, read_skips, write_skips
from upalm.training.step import TrainState, evaluate, train_step
from upalm.ul2r.denoisers import Denoiser


class Interrupted(KeyboardInterrupt):
    """Raised after Ctrl-C, SIGTERM or a hang-up, when the run is saved and can be resumed."""


def fit(
    config: TrainConfig,
    model: Decoder | LazyModel,
    tokenizer: Tokenizer,
    train: Corpora,
    validation: Corpora,
    *,
    title: str = "train",
) -> Decoder:
    """Train from `model`, or resume from the newest readable checkpoint. Returns the trained model.

    A `Decoder` stays as it is, beside the copy that is trained: 4 bytes more per parameter, which a `LazyModel` spares.

    Raises:
        Interrupted: on Ctrl-C, SIGTERM or a hang-up, after a checkpoint was written.
        FloatingPointError: the loss is not finite or jumps; step, batch and last good checkpoint are named.
        OSError: a checkpoint could not be written; the one before is intact.
        ValueError: a folder of another run, a mesh that does not divide, or checkpoints that cannot be read.
    """
    mesh = None if jax.sharding.get_mesh().empty else jax.sharding.get_mesh()
    optimizer = config.optimizer.build(config.n_steps)
    check_folder(config)
    with processes.raising_everywhere():
        feed = Feed(config, tokenizer.symbols, train, validation, mesh)
        data = feed.fingerprint()
    processes.agree({"training data": data})
    about = {"run": config.identity(), "tokenizer": tokenizer.hash, "data": data}
    denoisers, model = [d.name for d in feed.mixture], LazyModel.of(model)
    with ExitStack() as stack:
        # restore
        checkpoints = stack.enter_context(_open_checkpoints(config))
        check_checkpoints(config, checkpoints, about, tokenizer.hashes)
        step, state = first_state(config, model, optimizer, mesh, checkpoints)
        feed.restart(step, read_skips(config.out))
        with processes.raising_everywhere():
            _describe_run(config, model.config, tokenizer, feed.mixture)  # only once nothing refuses the run any more
            log = stack.enter_context(StepLog(config, model.config, denoisers, step, title))
        interrupted = stack.enter_context(_interruptible())
        requests, timer = Requests(mesh), _SaveTimer(config.checkpoints.minutes)
        while step < config.n_steps:
            # step
            with log.waiting():
                batch = feed.next()
            log.profile(step, state)
            state, reported = train_step(state, batch, optimizer=optimizer, n_denoisers=len(denoisers))
            step += 1
            try:
                # log
                log.read()  # the step before, while this one runs
                log.expect(step, reported, batch.target_tokens.size)
                is_last = step == config.n_steps
                if step % config.eval_every == 0 or is_last:
                    log.write(step, {"validation_loss": evaluate(state.model, feed.validation(), len(denoisers))})
                requested = requests.exchange(STOP * interrupted.is_set() + SAVE * timer.is_due())
                # save
                if requested or step % config.save_every == 0 or is_last:
                    log.read()  # before it is saved: this step's loss may be a spike
                    with log.saving(step):
                        checkpoints.save(step, state.model, state.opt_state, about)
                    timer.restart()
                    requests.forget()
                    if requested & STOP and not is_last:
                        raise Interrupted(f"saved after step {step} in {config.out}; the same command resumes the run.")
            except LossSpike as spike:
                state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
                step, state = _rewind(spike, config, checkpoints, feed, log, state)
    return state.model


@contextmanager
def _open_checkpoints(config: TrainConfig) -> Iterator[Checkpoints]:
    """The run's checkpoints, while its folders are locked; closed, they are complete."""
    kept = config.checkpoints
    with ExitStack() as stack:
        for folder in config.folders():
            stack.enter_context(lock.hold(folder))
        folder = kept.folder or config.out
        yield stack.enter_context(closing(Checkpoints(folder, keep=kept.last, keep_every=kept.every)))


def _describe_run(config: TrainConfig, model: ModelConfig, tokenizer: Tokenizer, mixture: Sequence[Denoiser]) -> None:
    """Write config.json and the tokenizer into the run folder, and beside its checkpoints, so that either opens."""
    source, before = config.data.source, _before(config)
    info = CheckpointInfo(
        inputs_eos=before.inputs_eos or any(d.inputs_eos for d in mixture),
        gaps_trained=bool(before.gaps_trained) or any(d.n_sentinels(config.data.seq_len) for d in mixture),
    )
    identity, stages = config.identity(), before.stages
    for folder in config.folders():
        if is_remote(folder):
            continue
        settings = to_json(config) | {"changed": False}  # of this start alone
        if folder != config.out:
            settings["checkpoints"]["folder"] = ""  # it holds them itself
        settings["directory"] = str(Path.cwd())  # from which relative paths are found again
        describe(Path(folder), model, tokenizer, identity, info, manifests(source), settings, stages)


def _before(config: TrainConfig) -> CheckpointInfo:
    """Return the training history of the weights that the run started from, on the first process, which records it.

    A run that is resumed has it in its config.json, so that the checkpoint that it started from may be gone.
    """
    if not isinstance(config.start, Continue) or not processes.is_first():
        return CheckpointInfo()
    folder = resumed_folder(config)
    if folder is None:
        return read_info(config.start.checkpoint)
    info = read_info(folder)
    return info._replace(stages=info.stages[:-1] if info.stages else None)


def _rewind(
    spike: LossSpike, config: TrainConfig, checkpoints: Checkpoints, feed: Feed, log: StepLog, like: TrainState
) -> tuple[int, TrainState]:
    """Go back and skip batches (PaLM section 5.1). Returns the steps done and the state there.

    Raises:
        FloatingPointError: the remedy is to stop, or cannot be applied.
    """
    checkpoints.wait()
    steps, batch = checkpoints.steps(), spike.step - 1
    last = f"the last good checkpoint is {checkpoints.folder}/{steps[0]}" if steps else "there is no checkpoint"
    what = f"{spike} (batch {batch}, rows from {feed.first_row(batch)}) of {config.out}; {last}"
    skip = choose_remedy(spike, config.spikes, steps, len(feed.skips), what)
    checkpoints.discard_after(skip.at_step, "before_rewind")
    # the skip is recorded last: after a crash in between, the run meets the spike again
    skips = [*feed.skips, skip]
    if processes.is_first():
        write_skips(config.out, skips)
    found = restore(checkpoints, like)
    if found is None:
        raise FloatingPointError(f"{what}. Checkpoint {skip.at_step} is gone.")
    feed.restart(found[0], skips)
    event = {"event": "rewind", "spike_step": spike.step, "spike_loss": str(spike.loss)}
    log.rewind(found[0], event | {"skipped_batches": skip.n_batches})
    log.say(f"warning: {what}. Back at step {found[0]}, leaving out {skip.n_batches} batches.")
    return found


class _SaveTimer:
    """Says on the first process when no checkpoint was begun for so many minutes; 0 minutes are never over."""

    def __init__(self, minutes: float):
        self._seconds = 60 * minutes
        self.restart()

    def restart(self) -> None:
        self._started = time.monotonic()

    def is_due(self) -> bool:
        return bool(self._seconds and processes.is_first() and time.monotonic() - self._started > self._seconds)


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """The first Ctrl-C, SIGTERM or hang-up sets the event, so that the step in flight ends; the second stops at once.

    Signals that are ignored stay so, as those of a background job, or a hang-up under nohup.
    """
    event, previous = threading.Event(), {}

    def handle(number: int, frame: object) -> None:
        event.set()
        signal.signal(number, previous[number])

    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            previous[number] = signal.signal(number, handle)
    try:
        yield event
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
