"""Training: `TrainConfig`, the step, and the loop that survives interruption.

Dims: A accumulation steps, B batch rows, T positions.
"""

import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from upalm import metrics, text, ul2r
from upalm.batch import Batch
from upalm.checkpoint import Checkpoints, describe, description, load_model
from upalm.data import Corpus, DataConfig, Loader, Weighted, built_folders, manifests, open_source
from upalm.loss import LossSums, loss_fn
from upalm.model import Decoder, ModelConfig
from upalm.optim import Adafactor, Optimizer
from upalm.tokenizer import SentencePiece, Tokenizer
from upalm.tokenizer_json import has_tokenizer, load_tokenizer


@dataclass(frozen=True)
class Scratch:
    """Start from random weights and a tokenizer trained on the data (pretraining)."""

    model: ModelConfig = field(default_factory=ModelConfig)


@dataclass(frozen=True)
class Continue:
    """Start from the weights and tokenizer of a checkpoint, with fresh optimizer state (UL2R)."""

    checkpoint: Path


@dataclass(frozen=True)
class TrainConfig:
    """A training run. Everything that decides its numbers is here."""

    out: Path
    """Folder of the run: checkpoints, tokenizer, metrics. Run again with the same settings to resume."""
    start: Scratch | Continue = field(default_factory=Scratch)
    """Where the weights come from."""
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: Optimizer = field(default_factory=Adafactor)
    n_steps: int = 1000
    """Optimizer steps."""
    accumulation: int = 1
    """Microbatches that a batch is split into, to save memory; the update is the same."""
    seed: int = 0
    """Decides weights, data order and noise."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    save_every: int = 500
    """Steps between checkpoints; one is also written at the end and on Ctrl-C."""
    eval_every: int = 500
    """Steps between evaluations of the validation loss."""
    eval_batches: int = 8
    """Validation batches."""

    def __post_init__(self):
        for name in ("n_steps", "accumulation", "log_every", "save_every", "eval_every", "eval_batches"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1.")
        if self.data.batch_size % self.accumulation:
            raise ValueError(f"batch_size {self.data.batch_size} is no multiple of accumulation {self.accumulation}.")

    def identity(self) -> dict[str, Any]:
        """As JSON, without what does not change the numbers."""
        free = {"out", "log_every", "save_every"}
        fields = {k: v for k, v in asdict(self).items() if k not in free}
        fields["data"] = {k: v for k, v in fields["data"].items() if k != "n_workers"}
        fields["denoisers"] = [repr(d) for d in ul2r.mixture(self.data.mixture)]
        kinds = {"start": type(self.start).__name__, "optimizer": type(self.optimizer).__name__}
        return jax.tree.map(lambda x: str(x) if isinstance(x, Path) else x, fields | {"kinds": kinds})


class TrainState(NamedTuple):
    """What a step reads and writes."""

    model: Decoder
    opt_state: Any


class StepMetrics(NamedTuple):
    """What a step reports."""

    sums: LossSums
    grad_norm: jax.Array


class Interrupted(KeyboardInterrupt):
    """Ctrl-C arrived; the run is saved and can be resumed."""


@partial(jax.jit, static_argnames=("optimizer", "n_denoisers"), donate_argnames="state")
def train_step(
    state: TrainState, batches: Batch, *, optimizer: optax.GradientTransformation, n_denoisers: int
) -> tuple[TrainState, StepMetrics]:
    """One update from A microbatches, [A, B, T]. Sums are added up and divided once, because microbatches
    differ in their number of loss tokens.
    """
    gradient = eqx.filter_value_and_grad(partial(loss_fn, n_denoisers=n_denoisers), has_aux=True)

    def accumulate(total, batch):
        (_, sums), grads = gradient(state.model, batch)
        return jax.tree.map(jnp.add, total, (grads, sums)), None

    no_sums = LossSums(jnp.zeros(n_denoisers), jnp.zeros(n_denoisers))
    zeros = (jax.tree.map(jnp.zeros_like, state.model), no_sums)
    (grads, sums), _ = jax.lax.scan(accumulate, zeros, batches)
    grads = jax.tree.map(lambda g: g / jnp.maximum(jnp.sum(sums.weight), 1), grads)
    with jax.numpy_dtype_promotion("standard"):  # optax relies on it
        updates, opt_state = optimizer.update(grads, state.opt_state, state.model)  # pyright: ignore[reportArgumentType]
    model = eqx.apply_updates(state.model, updates)
    return TrainState(model, opt_state), StepMetrics(sums, optax.tree.norm(grads))


@partial(jax.jit, static_argnames="n_denoisers")
def _eval_step(model: Decoder, batch: Batch, *, n_denoisers: int) -> LossSums:
    return loss_fn(model, batch, n_denoisers=n_denoisers)[1]


def evaluate(model: Decoder, batches: Iterator[Batch], n_denoisers: int) -> float:
    """Mean NLL over the loss tokens of `batches`, in nats a token."""
    sums = [_eval_step(model, batch, n_denoisers=n_denoisers) for batch in batches]
    return float(sum(s.nll.sum() for s in sums) / sum(s.weight.sum() for s in sums))


def microbatched(batch: Batch, n: int) -> Batch:
    """[B, T] -> [A, B / A, T]."""
    return Batch(*(x.reshape(n, -1, *x.shape[1:]) for x in batch))


def run(config: TrainConfig) -> Path:
    """Prepare text, tokenizer and weights, and train. Returns the run folder."""
    check_folder(config)
    model, tokenizer = prepare(config)
    print(f"{model.config.n_params / 1e6:.2f}M parameters, vocabulary {tokenizer.vocab_size}", flush=True)
    train, validation = open_source(config.data, tokenizer)
    n_train, n_validation = (sum(corpus.n_tokens for corpus, _ in some) for some in (train, validation))
    print(f"{n_train:,} training and {n_validation:,} validation tokens", flush=True)
    fit(config, model, tokenizer, train, validation)
    return config.out


def check_folder(config: TrainConfig) -> None:
    """Refuse a folder that holds another run.

    Raises:
        ValueError: with the settings that differ.
    """
    if not config.out.exists() or not any(config.out.iterdir()):
        return
    there = description(config.out)["run"]
    here = config.identity()
    if there != here:
        names = sorted(k for k in here.keys() | there.keys() if here.get(k) != there.get(k))
        changes = "; ".join(f"{k}: {there.get(k)} there, {here.get(k)} here" for k in names)
        raise ValueError(f"{config.out} holds a run with other settings ({changes}). Choose another --out.")


def prepare(config: TrainConfig) -> tuple[Decoder, Tokenizer]:
    """Weights and tokenizer to start from.

    Raises:
        ValueError: from the checkpoint or the tokenizer's training; or rows longer than the model's.
    """
    if isinstance(config.start, Continue):
        model, tokenizer = load_model(config.start.checkpoint)
    else:
        tokenizer = _tokenizer(config, config.start.model.vocab_size)
        model = Decoder(config.start.model, key=jax.random.key(config.seed))
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} subwords, the model {model.config.vocab_size} embeddings: "
            f"set --start.model.vocab-size {tokenizer.vocab_size}, or build the shards with a smaller --vocab-size."
        )
    if config.data.seq_len > model.config.seq_len:
        raise ValueError(f"rows of {config.data.seq_len} are longer than the model's {model.config.seq_len}.")
    return model, tokenizer


def _tokenizer(config: TrainConfig, vocab_size: int) -> Tokenizer:
    """The run's, if it is being resumed; that of built shards; or one trained on the text."""
    if has_tokenizer(config.out):
        return load_tokenizer(config.out)
    if folders := built_folders(config.data.source):
        return load_tokenizer(next(iter(folders)))
    corpus = text.load(config.data.source, skip_undecodable=config.data.skip_undecodable)
    order = np.random.default_rng(config.seed).permutation(len(corpus.train))
    return SentencePiece.train((corpus.train[i].text for i in order), vocab_size)


def fit(
    config: TrainConfig,
    model: Decoder,
    tokenizer: Tokenizer,
    train: Corpus | Sequence[Weighted],
    validation: Corpus | Sequence[Weighted],
    *,
    title: str = "train",
) -> Decoder:
    """Train from `model`, or go on from the newest checkpoint in `config.out`. Returns the trained model.

    Raises:
        Interrupted: on Ctrl-C, after a checkpoint was written.
        FloatingPointError: the loss is not finite (step named; nothing is saved after it).
    """
    check_folder(config)
    loader = Loader(train, config.data, tokenizer.symbols, seed=config.seed)
    held_out = Loader(validation, config.data, tokenizer.symbols, seed=config.seed)
    n_denoisers = len(loader.segmenters)
    optimizer = config.optimizer.build(config.n_steps)
    inputs_eos = tokenizer.inputs_eos or any(d.inputs_eos for d in loader.mixture)
    gaps_trained = bool(tokenizer.gaps_trained) or any(d.n_sentinels(config.data.seq_len) for d in loader.mixture)
    learnt = tokenizer.trained(inputs_eos=inputs_eos, gaps_trained=gaps_trained)
    describe(config.out, model.config, learnt, config.identity(), manifests(config.data.source))
    checkpoints = Checkpoints(config.out)
    state = TrainState(model, optimizer.init(model))  # pyright: ignore[reportArgumentType]
    step = checkpoints.latest() or 0
    if step:
        state = TrainState(checkpoints.restore("model", model), checkpoints.restore("optimizer", state.opt_state))
    else:
        state = jax.tree.map(jnp.copy, state)  # the caller keeps its model: the step donates its input
    log = metrics.Metrics(config.out / "metrics.jsonl", step)
    names = [s.denoiser.name for s in loader.segmenters]

    with _interruptible() as interrupted, metrics.Bar(title, config.n_steps, step) as bar:
        pending, clock = None, _Clock(config)
        for batch in loader.batches(step, config.n_steps):
            state, reported = train_step(
                state, microbatched(batch, config.accumulation), optimizer=optimizer, n_denoisers=n_denoisers
            )
            if pending is not None:  # read the metrics of the step before while this one runs
                bar.update(step, _report(log, config, step, pending, clock, names))
            step, pending = step + 1, reported
            if step % config.eval_every == 0 or step == config.n_steps:
                loss = evaluate(state.model, held_out.batches(0, config.eval_batches), n_denoisers)
                log.write(step, {"validation_loss": loss})
            stop = interrupted.is_set()
            if stop or step % config.save_every == 0 or step == config.n_steps:
                bar.update(step, _report(log, config, step, pending, clock, names))
                pending = None
                checkpoints.save(step, *state)
            if stop and step < config.n_steps:
                break
    checkpoints.close()
    log.close()
    if step < config.n_steps:
        raise Interrupted(f"saved after step {step} in {config.out}; run the same command to go on.")
    return state.model


class _Clock:
    """Tokens a second since the first step, whose compilation does not count."""

    def __init__(self, config: TrainConfig):
        self._tokens = config.data.batch_size * config.data.seq_len
        self._start, self._steps = 0.0, -1

    def tick(self) -> float:
        self._steps += 1
        if self._steps == 0:
            self._start = time.monotonic()
            return math.nan
        return self._steps * self._tokens / (time.monotonic() - self._start)


def _report(log: metrics.Metrics, config: TrainConfig, step: int, reported: StepMetrics, clock: _Clock, names) -> str:
    """Write the metrics after `step` steps, and return a note for the progress line."""
    sums, grad_norm = jax.device_get(reported)
    tokens_per_second = clock.tick()
    loss = float(sums.nll.sum() / max(sums.weight.sum(), 1))
    if not math.isfinite(loss + float(grad_norm)):
        raise FloatingPointError(
            f"loss {loss}, gradient norm {grad_norm} at step {step} of {config.out} (batch {step - 1}). "
            "Lower the learning rate; the checkpoint before is intact."
        )
    if step % config.log_every == 0 or step == config.n_steps:
        rate = np.asarray(config.optimizer.schedule.build(config.n_steps)(step - 1)).item()
        by_denoiser = {f"loss_{n}": float(a / w) for n, a, w in zip(names, *sums, strict=True) if w > 0}
        values = {"loss": loss, **by_denoiser, "grad_norm": float(grad_norm), "learning_rate": rate}
        if math.isfinite(tokens_per_second):
            values["tokens_per_second"] = tokens_per_second
        log.write(step, values)
    return f"loss {loss:.3f}  {tokens_per_second:,.0f} tokens/s"


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
