"""Norms, rotary embeddings, matrix products.

Dims: B batch rows, T positions, D d_model, N heads, H d_head; R rows, I inputs and O outputs of a matrix product.
"""

import math
from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from upalm.distributed.sharding import has_mesh
from upalm.model.config import ModelConfig

# --- Norms ----------------------------------------------------------------------------------------


def normalise(
    x: Float[Array, "..."], scale: Float[Array, "..."] | None, config: ModelConfig, axes: tuple[int, ...] = (-1,)
) -> Float[Array, "..."]:
    """RMS norm (or layer norm) over `axes` in fp32: `x / rms(x) * (norm_offset + scale)`.

    Paper: PaLM section 2 says LayerNorm. Deviation: RMS norm with a zero-centred scale, as in T5X, Google's code for
    PaLM; `norm="layernorm"` is the paper's word.
    """
    x32 = x.astype(jnp.float32)
    if config.norm == "layernorm":
        x32 = x32 - jnp.mean(x32, axes, keepdims=True)
    x32 = x32 * lax.rsqrt(jnp.mean(jnp.square(x32), axes, keepdims=True) + config.norm_eps)
    if scale is not None:
        x32 = x32 * jnp.expand_dims(_with_offset(scale, config), range(x.ndim - scale.ndim))
    return x32.astype(x.dtype)


def normalise_heads(
    x_BTNH: Float[Array, "B T N H"], scale: Float[Array, "#N H"] | None, config: ModelConfig
) -> Float[Array, "B T N H"]:
    """Query-key norm (`ModelConfig.qk_norm`); the identity for a model without one."""
    if scale is None:
        return x_BTNH
    if config.qk_norm != "l2":
        return normalise(x_BTNH, scale, config, (-2, -1) if config.qk_norm == "flat" else (-1,))
    x32 = x_BTNH.astype(jnp.float32)
    x32 = x32 * lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x32), -1, keepdims=True), 1e-24))
    return (x32 * _with_offset(scale, config)[None, None]).astype(x_BTNH.dtype)


def unit_scale(config: ModelConfig, *shape: int) -> Float[Array, "..."]:
    """Norm scales that change nothing."""
    return jnp.full(shape, 1 - config.norm_offset, jnp.float32)


def _with_offset(scale: Float[Array, "..."], config: ModelConfig) -> Float[Array, "..."]:
    return config.norm_offset + scale if config.norm_offset else scale


# --- Rotary embeddings ----------------------------------------------------------------------------


class Rotary(NamedTuple):
    """Sine and cosine of each position's angles, in fp32: bf16 positions are wrong beyond 256."""

    sin: Float[Array, "B T H_half"]
    cos: Float[Array, "B T H_half"]
    xpos: Float[Array, "B T H_half"] | None = None
    """xPos's factor of queries, and divisor of keys."""


def rotary(positions: Int[Array, "B T"], config: ModelConfig) -> Rotary:
    """RoPE tables over the whole head.

    With `xpos_scale_base` they are xPos's (arXiv:2212.10554), whose scores fall with distance.
    """
    even, frequencies = _even_dims(config), rotary_frequencies(config)
    positions_BT1 = positions.astype(jnp.float32)[..., None]
    angles = positions_BT1 * frequencies[None, None]
    xpos = None
    if config.xpos_scale_base:
        base = (even + 0.4 * config.d_head) / (1.4 * config.d_head)
        # scores depend on differences of positions alone: counted from the middle, the powers stay in range
        xpos = base[None, None] ** ((positions_BT1 - config.seq_len // 2) / config.xpos_scale_base)
    return Rotary(jnp.sin(angles), jnp.cos(angles), xpos)


def rotary_frequencies(config: ModelConfig) -> Float[Array, " H_half"]:
    """Radians per position of each rotated pair.

    With `rope_factor`, Llama 3's scaling: pairs that turn at most `rope_low_freq_factor` times in
    `rope_original_seq_len` positions slow down by the factor, those that turn at least `rope_high_freq_factor` times
    keep their pace, and a ramp lies between.
    """
    frequencies = config.rope_theta ** (-_even_dims(config) / config.d_head)
    if config.rope_factor == 1:
        return frequencies
    n_turns = config.rope_original_seq_len / (2 * math.pi) * frequencies
    low, high = config.rope_low_freq_factor, config.rope_high_freq_factor
    kept = jnp.clip((n_turns - low) / (high - low), 0, 1)
    return frequencies * (kept + (1 - kept) / config.rope_factor)


def _even_dims(config: ModelConfig) -> Float[Array, " H_half"]:
    return jnp.arange(0, config.d_head, 2, dtype=jnp.float32)


def rotate(x_BTNH: Float[Array, "B T N H"], tables: Rotary, *, is_key: bool = False) -> Float[Array, "B T N H"]:
    """Rotate each pair (i, i + H/2) of a head by the angles of its position."""
    sin, cos = tables.sin[:, :, None], tables.cos[:, :, None]
    if tables.xpos is not None:
        xpos = tables.xpos[:, :, None]
        sin, cos = (sin / xpos, cos / xpos) if is_key else (sin * xpos, cos * xpos)
    a, b = jnp.split(x_BTNH.astype(jnp.float32), 2, -1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x_BTNH.dtype)


# --- Matrix products ------------------------------------------------------------------------------

MAX_ROWS_OUTPUT_MAJOR = 64
"""Most rows for which XLA:CPU multiplies faster with the weight stored [out, in]."""


class TransposedWeight(eqx.Module):
    """A weight stored [out, in]. XLA:CPU multiplies up to 64 rows 25% faster in this layout."""

    kernel_OI: Float[Array, "O I"]
    out_shape: tuple[int, ...] = eqx.field(static=True)

    @classmethod
    def of(cls, w: Float[Array, "..."], n_in: int = 1) -> "TransposedWeight":
        """Transpose a weight whose first `n_in` axes are its inputs."""
        n_inputs = math.prod(w.shape[:n_in])
        return cls(w.reshape(n_inputs, -1).T, w.shape[n_in:])

    def product(self, x_RI: Float[Array, "R I"], sum_dtype: str | None = None) -> Float[Array, "R O"]:
        """`x @ w`; see `matmul`."""
        kernel_OI = self.kernel_OI.astype(x_RI.dtype)
        if len(x_RI) > MAX_ROWS_OUTPUT_MAJOR:
            return jnp.matmul(x_RI, kernel_OI.T, preferred_element_type=sum_dtype)
        return _multiply_few_rows(x_RI, kernel_OI, sum_dtype)


@partial(jax.jit, static_argnums=2)  # traced once per shape, not once per layer
def _multiply_few_rows(
    x_RI: Float[Array, "R I"], kernel_OI: Float[Array, "O I"], sum_dtype: str | None
) -> Float[Array, "R O"]:
    multiply = partial(jnp.matmul, preferred_element_type=sum_dtype)

    def kernel_first(x_RI: Array, kernel_OI: Array) -> Array:
        # without the barriers XLA moves the transposes into a product that it has no fast kernel for
        return lax.optimization_barrier(multiply(kernel_OI, lax.optimization_barrier(x_RI.T))).T

    def direct(x_RI: Array, kernel_OI: Array) -> Array:  # whose transposes and slices other platforms fuse
        return multiply(x_RI, kernel_OI.T)

    return lax.platform_dependent(x_RI, kernel_OI, cpu=kernel_first, default=direct)


Weight = Float[Array, "..."] | TransposedWeight
"""Weight of a matrix product, in either layout."""


def matmul(x: Float[Array, "..."], w: Weight, n_in: int = 1, sum_dtype: str | None = None) -> Float[Array, "..."]:
    """Contract the last `n_in` axes of `x` with the first of `w`, over flattened rows.

    Operands have the dtype of `x`, and so has the result unless `sum_dtype` is another.

    Flattened, because XLA:CPU forms the weight gradient of a [B, T, D] operand from a transposed copy, 2-3 times
    slower. Not on a mesh, where rows and positions may both be split.
    """
    lead, x_RI = x.shape[: x.ndim - n_in], x.reshape(-1, math.prod(x.shape[x.ndim - n_in :]))
    if isinstance(w, TransposedWeight):
        return w.product(x_RI, sum_dtype).reshape(*lead, *w.out_shape)
    w = w.astype(x.dtype)
    if has_mesh():
        return jnp.tensordot(x, w, n_in, preferred_element_type=sum_dtype)
    product_RO = jnp.matmul(x_RI, w.reshape(x_RI.shape[1], -1), preferred_element_type=sum_dtype)
    return product_RO.reshape(*lead, *w.shape[n_in:])
