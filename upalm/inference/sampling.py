"""What the next token may be, and which it is: samplers, the sentinel grammar, stop strings.

Dims: B batch rows, V vocabulary, G gaps, M sentinels, Q states of the stop strings' automaton.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


@dataclass(frozen=True)
class Sampler:
    """How the next token is drawn. Filters apply in the order of the fields, each to what the one before left."""

    temperature: float = 0.0
    """0 is greedy."""
    top_k: int = 0
    """Keep the k most likely; 0 keeps all."""
    top_p: float = 1.0
    """Keep the most likely up to this probability."""
    min_p: float = 0.0
    """Keep what has at least this share of the most likely token's probability."""

    def __post_init__(self):
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1 or not 0 <= self.min_p <= 1:
            raise ValueError(f"{self}: expected temperature >= 0, top_k >= 0, top_p in (0, 1], min_p in [0, 1].")

    def __call__(self, logits_BV: Float[Array, "B V"], keys: Array) -> Int[Array, " B"]:
        """Choose a token a row, each with its own key."""
        if self.temperature == 0:
            ids = jnp.arange(logits_BV.shape[-1])[None]
            is_best = logits_BV == jnp.max(logits_BV, -1, keepdims=True)
            return jnp.min(jnp.where(is_best, ids, ids.size - 1), -1)  # argmax, four times as fast on XLA:CPU
        logits_BV = logits_BV / self.temperature
        if self.top_k:
            kth = jax.lax.top_k(logits_BV, min(self.top_k, logits_BV.shape[-1]))[0][:, -1:]
            logits_BV = jnp.where(logits_BV < kth, -jnp.inf, logits_BV)
        if self.top_p < 1:
            ordered = jnp.sort(logits_BV, -1, descending=True)
            mass_before = jnp.cumsum(jax.nn.softmax(ordered, -1), -1) - jax.nn.softmax(ordered, -1)
            least = jnp.min(jnp.where(mass_before < self.top_p, ordered, jnp.inf), -1, keepdims=True)
            logits_BV = jnp.where(logits_BV < least, -jnp.inf, logits_BV)
        if self.min_p > 0:
            least = jnp.max(logits_BV, -1, keepdims=True) + np.log(self.min_p)
            logits_BV = jnp.where(logits_BV < least, -jnp.inf, logits_BV)
        return jax.vmap(jax.random.categorical)(keys, logits_BV).astype(jnp.int32)
