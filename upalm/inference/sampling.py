"""Temperature, top-k, top-p and min-p sampling.

Dims: B batch rows, V vocabulary.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from upalm.checks import is_number, is_whole

MIN_TEMPERATURE = 1e-6
"""Logits divided by less than this would leave float32."""


@dataclass(frozen=True)
class Sampler:
    """Settings by which the next token is drawn.

    Filters apply in the order of the fields, each to the tokens that remain.

    Raises:
        ValueError: a value out of range, or NaN.
    """

    temperature: float = 0.0
    """0 is greedy."""
    top_k: int = 0
    """Keep the k likeliest tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the likeliest tokens up to this probability."""
    min_p: float = 0.0
    """Keep tokens with at least this share of the likeliest token's probability."""

    def __post_init__(self):
        is_valid = {  # written so that NaN, which compares false with everything, is invalid
            "temperature": is_number(t := self.temperature) and (t == 0 or MIN_TEMPERATURE <= t < np.inf),
            "top_k": is_whole(self.top_k) and self.top_k >= 0,
            "top_p": is_number(self.top_p) and 0 < self.top_p <= 1,
            "min_p": is_number(self.min_p) and 0 <= self.min_p <= 1,
        }
        expected = {
            "temperature": f"0 (greedy), or a finite number of at least {MIN_TEMPERATURE}",
            "top_k": "a whole number of at least 0",
            "top_p": "a number above 0 and up to 1",
            "min_p": "a number from 0 to 1",
        }
        for name, ok in is_valid.items():
            if not ok:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected {expected[name]}.")

    def __call__(self, logits_BV: Float[Array, "B V"], keys: Array) -> Int[Array, " B"]:
        """Choose a token for each row, with the row's own key."""
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
