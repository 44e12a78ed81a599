"""TrainState, the training step, and evaluation of the validation loss.

Dims: A accumulation steps, B batch rows, T positions.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from upalm.distributed.sharding import constrain_params
from upalm.model.palm import LOGICAL_AXES, Decoder
from upalm.training.loss import LossSums, loss_fn
from upalm.ul2r.rows import Batch


class TrainState(NamedTuple):
    """Model and optimizer state, which a step takes and returns."""

    model: Decoder
    opt_state: Any


class StepMetrics(NamedTuple):
    """Loss sums and gradient norm of one step."""

    sums: LossSums
    grad_norm: jax.Array


@partial(jax.jit, static_argnames=("optimizer", "n_denoisers"), donate_argnames="state")
def train_step(
    state: TrainState, batches: Batch, *, optimizer: optax.GradientTransformation, n_denoisers: int
) -> tuple[TrainState, StepMetrics]:
    """Update the state once, from A microbatches [A, B, T]; the state passed in is donated.

    Gradients are summed over all microbatches and divided once, because their numbers of loss tokens differ.
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
    new = TrainState(eqx.apply_updates(state.model, updates), opt_state)
    return constrain_params(new, LOGICAL_AXES), StepMetrics(sums, optax.tree.norm(grads))


@partial(jax.jit, static_argnames="n_denoisers")
def _eval_step(model: Decoder, batches: Batch, *, n_denoisers: int) -> LossSums:
    return loss_fn(model, jax.tree.map(lambda x: x[0], batches), n_denoisers=n_denoisers)[1]


def evaluate(model: Decoder, batches: Iterable[Batch], n_denoisers: int) -> float:
    """Mean NLL over the loss tokens of [1, B, T] batches, in nats per token."""
    sums = [_eval_step(model, batch, n_denoisers=n_denoisers) for batch in batches]
    return float(sum(s.nll.sum() for s in sums) / sum(s.weight.sum() for s in sums))


def microbatched(batch: Batch, n: int) -> Batch:
    """Split a batch into n microbatches: [B, T] -> [A, B / A, T]."""
    return Batch(*(x.reshape(n, -1, *x.shape[1:]) for x in batch))
