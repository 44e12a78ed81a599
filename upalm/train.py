"""Training: `TrainConfig`, the step, and the loop that survives what happens to machines.

Dims: A accumulation steps, B batch rows, T positions.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from upalm import ul2r
from upalm.batch import Batch
from upalm.data import DataConfig
from upalm.hosts import Hosts, any_asked
from upalm.loss import LossSums, loss_fn
from upalm.model import LOGICAL_AXES, Decoder, ModelConfig
from upalm.optim import Adafactor, Optimizer
from upalm.settings import to_json
from upalm.sharding import MeshConfig, keep
from upalm.spikes import Spikes


@dataclass(frozen=True)
class Scratch:
    """Start from random weights and a tokenizer trained on the data (pretraining)."""

    model: ModelConfig = field(default_factory=ModelConfig)


@dataclass(frozen=True)
class Continue:
    """Start from the weights and tokenizer of a checkpoint, with fresh optimizer state (UL2R)."""

    checkpoint: Path
    remat: Literal["kept", "none", "matmuls", "full"] = "kept"
    """What the backward pass computes again (`ModelConfig.remat`), if not what the checkpoint says."""

    def reshaped(self, model: ModelConfig) -> ModelConfig:
        """The checkpoint's shape, with what is set here."""
        return model if self.remat == "kept" else replace(model, remat=self.remat)


@dataclass(frozen=True)
class Keep:
    """When checkpoints are written, and which stay."""

    minutes: float = 0.0
    """Also after this many minutes without one; 0 goes by `save_every` alone."""
    last: int = 2
    """Newest ones to keep."""
    every: int = 0
    """Keep those whose step is a multiple of this, too; 0 keeps none of them."""
    folder: str = ""
    """Where they lie, on a disk that all hosts see or in a bucket (gs://...); empty is `out`."""

    def __post_init__(self):
        if self.minutes < 0 or self.last < 1 or self.every < 0:
            raise ValueError(f"{self}: expected minutes at least 0, last at least 1, every at least 0.")


@dataclass(frozen=True)
class Watched:
    """What of a run goes where, beside the progress line and metrics.jsonl."""

    writers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Other places for the metrics."""
    profile: tuple[int, int] = (0, 0)
    """First and last step of a profile, written to `out`/profile; (0, 0) makes none."""


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
    """Steps between checkpoints; one is also written at the end, and on Ctrl-C or SIGTERM."""
    eval_every: int = 500
    """Steps between evaluations of the validation loss."""
    eval_batches: int = 8
    """Validation batches."""
    keep: Keep = field(default_factory=Keep)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    hosts: Hosts = field(default_factory=Hosts)
    spikes: Spikes = field(default_factory=Spikes)
    watched: Watched = field(default_factory=Watched)
    changed: bool = False
    """Go on with a run although its settings differ from those it was begun with."""

    def __post_init__(self):
        for name in ("n_steps", "accumulation", "log_every", "save_every", "eval_every", "eval_batches"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1.")
        for n in self.data.batch_sizes():
            if n % self.accumulation:
                raise ValueError(f"batch_size {n} is no multiple of accumulation {self.accumulation}.")

    def identity(self) -> dict[str, Any]:
        """As JSON, without what does not change the numbers but by rounding."""
        free = {"out", "log_every", "save_every", "keep", "mesh", "hosts", "watched", "changed"}
        fields = {k: v for k, v in to_json(self).items() if k not in {*free, "class"}}
        fields["data"] = {k: v for k, v in fields["data"].items() if k != "n_workers"}
        return fields | {"denoisers": [repr(d) for d in ul2r.mixture(self.data.mixture)]}


class TrainState(NamedTuple):
    """What a step reads and writes."""

    model: Decoder
    opt_state: Any


class StepMetrics(NamedTuple):
    """What a step reports."""

    sums: LossSums
    grad_norm: jax.Array
    requests: jax.Array
    """What any process asked; see `hosts.Requests`."""


# --- The step -------------------------------------------------------------------------------------


@partial(jax.jit, static_argnames=("optimizer", "n_denoisers"), donate_argnames="state")
def train_step(
    state: TrainState,
    batches: Batch,
    requests: jax.Array | None = None,
    *,
    optimizer: optax.GradientTransformation,
    n_denoisers: int,
) -> tuple[TrainState, StepMetrics]:
    """One update from A microbatches, [A, B, T]. Sums are added up and divided once, because microbatches
    differ in their number of loss tokens.
    """
    gradient = eqx.filter_value_and_grad(partial(loss_fn, n_denoisers=n_denoisers), has_aux=True)

    def accumulate(total, batch):
        (_, sums), grads = gradient(state.model, batch)
        total_grads, total_sums = jax.tree.map(jnp.add, total, (grads, sums))
        return (keep(total_grads, LOGICAL_AXES), total_sums), None

    no_sums = LossSums(jnp.zeros(n_denoisers), jnp.zeros(n_denoisers))
    zeros = (jax.tree.map(jnp.zeros_like, state.model), no_sums)
    (grads, sums), _ = jax.lax.scan(accumulate, zeros, batches)
    grads = jax.tree.map(lambda g: g / jnp.maximum(jnp.sum(sums.weight), 1), grads)
    with jax.numpy_dtype_promotion("standard"):  # optax relies on it
        updates, opt_state = optimizer.update(grads, state.opt_state, state.model)  # pyright: ignore[reportArgumentType]
    model = eqx.apply_updates(state.model, updates)
    asked = jnp.int32(0) if requests is None else any_asked(requests)
    new = keep(TrainState(model, opt_state), LOGICAL_AXES)
    return new, StepMetrics(sums, optax.tree.norm(grads), asked)


@partial(jax.jit, static_argnames="n_denoisers")
def _eval_step(model: Decoder, batches: Batch, *, n_denoisers: int) -> LossSums:
    return loss_fn(model, jax.tree.map(lambda x: x[0], batches), n_denoisers=n_denoisers)[1]


def evaluate(model: Decoder, batches: Iterable[Batch], n_denoisers: int) -> float:
    """Mean NLL over the loss tokens of [1, B, T] `batches`, in nats a token."""
    sums = [_eval_step(model, batch, n_denoisers=n_denoisers) for batch in batches]
    return float(sum(s.nll.sum() for s in sums) / sum(s.weight.sum() for s in sums))


def microbatched(batch: Batch, n: int) -> Batch:
    """[B, T] -> [A, B / A, T]."""
    return Batch(*(x.reshape(n, -1, *x.shape[1:]) for x in batch))
