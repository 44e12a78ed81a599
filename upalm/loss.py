"""Weighted next-token loss, returned as sums: whoever adds up microbatches or hosts divides once.

Dims: B batch rows, T positions, V vocabulary, M denoisers.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from upalm.batch import Batch
from upalm.model import LOGICAL_AXES, Decoder, head_logits
from upalm.sharding import constrain, gather, keep

Z_LOSS = 1e-4
"""Weight of log(Z)^2 (PaLM section 5)."""

_N_CHUNKS = 8


class LossSums(NamedTuple):
    """Sums over a batch, split by denoiser."""

    nll: Float[Array, " M"]
    weight: Float[Array, " M"]


def token_log_probs(logits: Float[Array, "B T V"], targets: Array) -> tuple[Array, Array]:
    """Log-probability of each target, and log Z; both [B, T]."""
    log_z = jax.nn.logsumexp(logits, -1)
    # compared, not gathered: the gradient of a gather is a scatter, slow on CPU and refused over a sharded V
    return jnp.sum(jnp.where(_is_target(logits, targets), logits, 0.0), -1) - log_z, log_z


def _is_target(logits, targets):
    return jnp.arange(logits.shape[-1])[None, None] == targets[..., None]


def loss_fn(model: Decoder, batch: Batch, *, n_denoisers: int = 1) -> tuple[Float[Array, ""], LossSums]:
    """Sum over loss tokens of NLL + z-loss, and the NLL and token count of each denoiser.

    Paper: PaLM section 5 (z-loss, no label smoothing); loss on targets only.
    """
    weights = jnp.asarray(batch.loss_weights)
    targets = jnp.asarray(batch.target_tokens)
    table = gather({"embed": model.head_table}, LOGICAL_AXES)["embed"]  # once, for all chunks
    objective, log_probs = chunked_loss(  # pyright: ignore[reportGeneralTypeIssues]
        table, model.hidden(batch), targets, weights, model.config.head_scale
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
    """Weighted sum of NLL + z-loss, and each target's log-probability, which has no gradient.

    Logits exist for an eighth of the positions at a time. Their gradient needs nothing but themselves, so it is
    formed beside them: no logits are kept for a backward pass, and none are computed twice.
    """

    def chunk(total, of):
        x, targets, weights = of
        log_probs, log_z = token_log_probs(_logits(table, x, logit_scale), targets)
        return total + _objective(log_probs, log_z, weights), log_probs

    total, log_probs = lax.scan(chunk, jnp.float32(0), _chunks(x, targets, weights))
    return total, _joined(log_probs)


def _forward(table, x, targets, weights, logit_scale):
    def chunk(carry, of):
        (total, d_table), (x, targets, weights) = carry, of
        logits, head_gradient = jax.vjp(partial(_logits, scale=logit_scale), table, x)
        log_probs, log_z = token_log_probs(logits, targets)
        pull = weights * (1 + 2 * Z_LOSS * log_z)
        d_logits = pull[..., None] * jnp.exp(logits - log_z[..., None]) - jnp.where(
            _is_target(logits, targets), weights[..., None], 0.0
        )
        d_table_here, d_x = head_gradient(d_logits)
        d_table = keep({"embed": d_table + d_table_here}, LOGICAL_AXES)["embed"]
        return (total + _objective(log_probs, log_z, weights), d_table), (log_probs, d_x)

    start = (jnp.float32(0), jnp.zeros_like(table))
    (total, d_table), (log_probs, d_x) = lax.scan(chunk, start, _chunks(x, targets, weights))
    return (total, _joined(log_probs)), (d_table, _joined(d_x))


def _backward(logit_scale, gradients, cotangents):
    d_table, d_x = gradients
    return cotangents[0] * d_table, cotangents[0].astype(d_x.dtype) * d_x, None, None


chunked_loss.defvjp(_forward, _backward)


def _logits(table, x, scale):
    return constrain(head_logits(table, x, scale), "batch", None, "vocab")


def _objective(log_probs, log_z, weights):
    return jnp.sum((Z_LOSS * jnp.square(log_z) - log_probs) * weights)


def _chunks(*arrays_BT):
    """[B, T, ...] -> [n, B, T / n, ...]: cut along T, so that B may be sharded."""
    n = math.gcd(arrays_BT[0].shape[1], _N_CHUNKS)
    return tuple(x.reshape(x.shape[0], n, -1, *x.shape[2:]).swapaxes(0, 1) for x in arrays_BT)


def _joined(x_nBT):
    """The inverse of `_chunks`."""
    return x_nBT.swapaxes(0, 1).reshape(x_nBT.shape[1], -1, *x_nBT.shape[3:])
