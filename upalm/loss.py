"""Weighted next-token loss, returned as sums: whoever adds up microbatches or hosts divides once.

Dims: B batch rows, T positions, V vocabulary, M denoisers.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from upalm.batch import Batch
from upalm.model import Decoder

Z_LOSS = 1e-4
"""Weight of log(Z)^2 (PaLM section 5)."""


class LossSums(NamedTuple):
    """Sums over a batch, split by denoiser."""

    nll: Float[Array, " M"]
    weight: Float[Array, " M"]


def token_log_probs(logits: Float[Array, "B T V"], targets: Array) -> tuple[Array, Array]:
    """Log-probability of each target, and log Z; both [B, T]."""
    log_z = jax.nn.logsumexp(logits, -1)
    # compared, not gathered: the gradient of a gather is a scatter, slow on CPU and refused over a sharded V
    is_target = jnp.arange(logits.shape[-1])[None, None] == targets[..., None]
    return jnp.sum(jnp.where(is_target, logits, 0.0), -1) - log_z, log_z


def loss_fn(model: Decoder, batch: Batch, *, n_denoisers: int = 1) -> tuple[Float[Array, ""], LossSums]:
    """Sum over loss tokens of NLL + z-loss, and the NLL and token count of each denoiser.

    Paper: PaLM section 5 (z-loss, no label smoothing); loss on targets only.
    """
    log_probs, log_z = token_log_probs(model(batch), jnp.asarray(batch.target_tokens))
    weights = jnp.asarray(batch.loss_weights)
    ids = jnp.asarray(batch.denoiser_ids).astype(jnp.int32)
    is_denoiser = jax.nn.one_hot(ids, n_denoisers) * weights[..., None]
    sums = LossSums(jnp.sum(-log_probs[..., None] * is_denoiser, (0, 1)), jnp.sum(is_denoiser, (0, 1)))
    return jnp.sum((Z_LOSS * jnp.square(log_z) - log_probs) * weights), sums
