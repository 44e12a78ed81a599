"""Training: `TrainConfig`, the step, and the loop that survives what happens to machines.

Dims: A accumulation steps, B batch rows, T positions.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from upalm.distributed.processes import any_request
from upalm.distributed.sharding import constrain_params
from upalm.model.palm import LOGICAL_AXES, Decoder
from upalm.training.loss import LossSums, loss_fn
from upalm.ul2r.rows import Batch


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
        return (constrain_params(total_grads, LOGICAL_AXES), total_sums), None

    no_sums = LossSums(jnp.zeros(n_denoisers), jnp.zeros(n_denoisers))
    zeros = (jax.tree.map(jnp.zeros_like, state.model), no_sums)
    (grads, sums), _ = jax.lax.scan(accumulate, zeros, batches)
    grads = jax.tree.map(lambda g: g / jnp.maximum(jnp.sum(sums.weight), 1), grads)
    with jax.numpy_dtype_promotion("standard"):  # optax relies on it
        updates, opt_state = optimizer.update(grads, state.opt_state, state.model)  # pyright: ignore[reportArgumentType]
    model = eqx.apply_updates(state.model, updates)
    asked = jnp.int32(0) if requests is None else any_request(requests)
    new = constrain_params(TrainState(model, opt_state), LOGICAL_AXES)
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
