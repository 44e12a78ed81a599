"""Weighted next-token loss with z-loss, returned as sums so that microbatches are added before dividing once.

Dims: B batch rows, T positions, V vocabulary, M denoisers.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from upalm.distributed.sharding import on_shards
from upalm.model.embedding import Split, all_gather_axis, first_row, is_target, psum_if, scatter_gradient
from upalm.model.palm import Decoder
from upalm.ul2r.rows import Batch

Z_LOSS = 1e-4
"""Weight of log(Z)^2 (PaLM section 5)."""

_N_CHUNKS = 8  # a power of two that divides most row lengths


class LossSums(NamedTuple):
    """Sums over a batch, by denoiser."""

    nll: Float[Array, " M"]
    """Negative log-likelihood, in nats."""
    weight: Float[Array, " M"]
    """Loss tokens."""


def _token_log_probs(logits, hits, vocab_axes):
    highest = lax.stop_gradient(jnp.max(logits, -1, keepdims=True))
    highest = lax.pmax(highest, vocab_axes) if vocab_axes else highest
    sums = jnp.sum(jnp.exp(logits - highest), -1), jnp.sum(jnp.where(hits, logits, 0.0), -1)
    total, target = psum_if(sums, vocab_axes)
    log_z = jnp.log(total) + highest[..., 0]
    return target - log_z, log_z


def loss_fn(model: Decoder, batch: Batch, *, n_denoisers: int = 1) -> tuple[Float[Array, ""], LossSums]:
    """Sum NLL + z-loss over the loss tokens, and NLL and token count by denoiser.

    Args:
        model: the model.
        batch: rows [B, T].
        n_denoisers: number of denoisers in the mixture.

    Paper: PaLM section 5 (z-loss, no label smoothing); loss on targets only.
    """
    weights = jnp.asarray(batch.loss_weights)
    targets = jnp.asarray(batch.target_tokens)
    objective, log_probs = chunked_loss(  # pyright: ignore[reportGeneralTypeIssues]
        model.head_table, model.hidden(batch), targets, weights, model.config.head_scale
    )
    ids = jnp.asarray(batch.denoiser_ids).astype(jnp.int32)
    is_denoiser = jax.nn.one_hot(ids, n_denoisers) * weights[..., None]
    return objective, LossSums(jnp.sum(-log_probs[..., None] * is_denoiser, (0, 1)), jnp.sum(is_denoiser, (0, 1)))


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def chunked_loss(
    table: Float[Array, "V D"],
    x: Float[Array, "B T D"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    logit_scale: float,
) -> tuple[Float[Array, ""], Float[Array, "B T"]]:
    """Sum NLL + z-loss by weight, and return each target's log-probability, which has no gradient.

    Logits exist for an eighth of the positions at a time. Their gradient is formed beside them, because it needs
    nothing else: no logits are kept for the backward pass, and none are computed twice. On a mesh, each device has its
    rows and its part of the vocabulary; the table is gathered once, and its gradient summed once.
    """
    split, row = _split(table, x)
    return on_shards(
        partial(_values, scale=logit_scale, split=split),
        (split.table_spec, split.rows(3), row, row),
        (PartitionSpec(), row),
        *(table, x, targets, weights),
    )


def _forward(table, x, targets, weights, logit_scale):
    split, row = _split(table, x)
    total, log_probs, *gradients = on_shards(
        partial(_values_and_gradients, scale=logit_scale, split=split),
        (split.table_spec, split.rows(3), row, row),
        (PartitionSpec(), row, split.table_spec, split.rows(3)),
        *(table, x, targets, weights),
    )
    return (total, log_probs), gradients


def _backward(logit_scale, gradients, cotangents):
    d_table, d_x = gradients
    return cotangents[0] * d_table, cotangents[0].astype(d_x.dtype) * d_x, None, None


chunked_loss.defvjp(_forward, _backward)


def _split(table, x):
    split = Split.of(table, len(x))
    return split, split.rows(2)


def _values(table, x, targets, weights, *, scale, split):
    whole, first = all_gather_axis(table, x.dtype, split), first_row(table, split)

    def chunk(total, of):
        x, targets, weights = of
        logits = _logits(whole, x, scale)
        log_probs, log_z = _token_log_probs(logits, is_target(len(whole), targets, first), split.vocab)
        return total + _objective(log_probs, log_z, weights), log_probs

    total, log_probs = lax.scan(chunk, jnp.float32(0), _chunks(x, targets, weights))
    return psum_if(total, split.batch), _joined(log_probs)


def _values_and_gradients(table, x, targets, weights, *, scale, split):
    whole, first = all_gather_axis(table, x.dtype, split), first_row(table, split)

    def chunk(carry, of):
        (total, d_table), (x, targets, weights) = carry, of
        logits, hits = _logits(whole, x, scale), is_target(len(whole), targets, first)
        log_probs, log_z = _token_log_probs(logits, hits, split.vocab)
        pull = weights * (1 + 2 * Z_LOSS * log_z)
        d_logits = pull[..., None] * jnp.exp(logits - log_z[..., None]) - jnp.where(hits, weights[..., None], 0.0)
        d_rows = (d_logits * scale).astype(x.dtype).reshape(-1, len(whole))
        d_table = d_table + _product(x.reshape(-1, x.shape[-1]).T, d_rows)
        return (total + _objective(log_probs, log_z, weights), d_table), (log_probs, _product(d_rows, whole))

    start = (jnp.float32(0), jnp.zeros(whole.shape[::-1]))
    (total, d_table), (log_probs, d_rows) = lax.scan(chunk, start, _chunks(x, targets, weights))
    d_x = psum_if(_joined(d_rows.reshape(len(d_rows), len(x), -1, x.shape[-1])), split.vocab)
    return psum_if(total, split.batch), _joined(log_probs), scatter_gradient(d_table, split), d_x.astype(x.dtype)


def _logits(table, x, scale):
    return _product(x.reshape(-1, x.shape[-1]), table.T).reshape(*x.shape[:-1], -1) * scale


def _product(a, b):
    return jnp.matmul(a, b, preferred_element_type=jnp.float32)


def _objective(log_probs, log_z, weights):
    return jnp.sum((Z_LOSS * jnp.square(log_z) - log_probs) * weights)


def _chunks(*arrays_BT):
    """[B, T, ...] -> [n, B, T / n, ...]: cut along T, so that B may be sharded."""
    n = math.gcd(arrays_BT[0].shape[1], _N_CHUNKS)
    return tuple(x.reshape(x.shape[0], n, -1, *x.shape[2:]).swapaxes(0, 1) for x in arrays_BT)


def _joined(x_nBT):
    """The inverse of `_chunks`."""
    return x_nBT.swapaxes(0, 1).reshape(x_nBT.shape[1], -1, *x_nBT.shape[3:])
