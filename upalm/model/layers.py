"""PaLM's parts: norm, rotary embedding, visible key ranges, multi-query attention, the parallel block.

Dims: B batch rows, T query positions, S key positions, D d_model, N heads, K key-value heads, G = B x K, H d_head,
F d_ff, L layers.
"""

import math
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from upalm.distributed.sharding import has_mesh
from upalm.model.config import ModelConfig


def normalise(x: Float[Array, "... D"], scale: Array | None, config: "ModelConfig") -> Float[Array, "... D"]:
    """RMS norm (or layer norm) in fp32: `x / rms(x) * (norm_offset + scale)`.

    Paper: PaLM section 2 says LayerNorm; Google's code has T5's RMS norm with a zero-centred scale,
    and so have we.
    """
    x32 = x.astype(jnp.float32)
    if config.norm == "layernorm":
        x32 = x32 - jnp.mean(x32, -1, keepdims=True)
    x32 = x32 * lax.rsqrt(jnp.mean(jnp.square(x32), -1, keepdims=True) + config.norm_eps)
    if scale is not None:
        x32 = x32 * jnp.expand_dims(_whole(scale, config), range(x.ndim - scale.ndim))
    return x32.astype(x.dtype)


def normalise_head(x_BTNH: Float[Array, "B T N H"], scale: Array | None, config: "ModelConfig") -> Array:
    """The norm of each query and key head, if the model has one."""
    if scale is None:
        return x_BTNH
    if config.qk_norm == "norm":
        return normalise(x_BTNH, scale, config)
    x32 = x_BTNH.astype(jnp.float32)
    x32 = x32 * lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x32), -1, keepdims=True), 1e-24))
    return (x32 * _whole(scale, config)[None, None]).astype(x_BTNH.dtype)


def unit_scale(config: "ModelConfig", *shape: int) -> Array:
    """Norm scales that change nothing."""
    return jnp.full(shape, 1 - config.norm_offset, jnp.float32)


def _whole(scale, config):
    return config.norm_offset + scale if config.norm_offset else scale


class Rotary(NamedTuple):
    """Sine and cosine of each position's angles, fp32 (bf16 positions are wrong beyond 256)."""

    sin: Float[Array, "B T H_half"]
    cos: Float[Array, "B T H_half"]
    xpos: Float[Array, "B T H_half"] | None = None
    """What xPos multiplies queries by, and divides keys by."""


def rotary(positions: Int[Array, "B T"], config: "ModelConfig") -> Rotary:
    """RoPE tables over the whole head; with `xpos_scale_base`, xPos (arXiv:2212.10554): scores fall with distance."""
    even = jnp.arange(0, config.d_head, 2, dtype=jnp.float32)
    frequencies = config.rope_theta ** (-even / config.d_head)
    positions_BT1 = positions.astype(jnp.float32)[..., None]
    angles = positions_BT1 * frequencies[None, None]
    xpos = None
    if config.xpos_scale_base:
        base = (even + 0.4 * config.d_head) / (1.4 * config.d_head)
        # only differences of positions count: from the middle, the powers stay in range
        xpos = base[None, None] ** ((positions_BT1 - config.seq_len // 2) / config.xpos_scale_base)
    return Rotary(jnp.sin(angles), jnp.cos(angles), xpos)


def rotate(x_BTNH: Float[Array, "B T N H"], tables: Rotary, *, is_key: bool = False) -> Float[Array, "B T N H"]:
    """Rotate the halves of each head by the angles of its position."""
    sin, cos = tables.sin[:, :, None], tables.cos[:, :, None]
    if tables.xpos is not None:
        xpos = tables.xpos[:, :, None]
        sin, cos = (sin / xpos, cos / xpos) if is_key else (sin * xpos, cos * xpos)
    a, b = jnp.split(x_BTNH.astype(jnp.float32), 2, -1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x_BTNH.dtype)


class TransposedWeight(eqx.Module):
    """A weight with the rows of its matrix along the outputs: how products with few rows, as in decoding, read it
    fastest (XLA:CPU, 16 rows: a quarter faster).
    """

    kernel_OI: Float[Array, "O I"]
    out_shape: tuple[int, ...] = eqx.field(static=True)

    @classmethod
    def of(cls, w: Float[Array, "..."], n_in: int = 1) -> "TransposedWeight":
        """A weight whose first `n_in` axes are the inputs."""
        n_rows = math.prod(w.shape[:n_in])
        return cls(w.reshape(n_rows, -1).T, w.shape[n_in:])

    def product(self, x_RI: Float[Array, "R I"]) -> Float[Array, "R O"]:
        """`x @ w`."""
        kernel_OI = self.kernel_OI.astype(x_RI.dtype)
        if len(x_RI) > _FEW_ROWS:
            return x_RI @ kernel_OI.T
        # without the barriers XLA moves the transposes into a product that it has no fast kernel for
        return lax.optimization_barrier(kernel_OI @ lax.optimization_barrier(x_RI.T)).T


_FEW_ROWS = 64


Weight = Float[Array, "..."] | TransposedWeight


def matmul(x: Float[Array, "..."], w: Weight, n_in: int = 1) -> Float[Array, "..."]:
    """Contract the last `n_in` axes of `x` with the first of `w`, over flattened rows.

    XLA:CPU forms the weight gradient of a [B, T, D] operand from a transposed copy, 2-3 times slower. On a mesh rows
    and positions may both be split, which flattened ones cannot be.
    """
    lead, x_RI = x.shape[: x.ndim - n_in], x.reshape(-1, math.prod(x.shape[x.ndim - n_in :]))
    if isinstance(w, TransposedWeight):
        return w.product(x_RI).reshape(*lead, *w.out_shape)
    w = w.astype(x.dtype)
    if has_mesh():
        return jnp.tensordot(x, w, n_in)
    return (x_RI @ w.reshape(x_RI.shape[1], -1)).reshape(*lead, *w.shape[n_in:])
