"""PaLM's parts: norm, rotary embedding, visible key ranges, multi-query attention, the parallel block.

Dims: B batch rows, T query positions, S key positions, D d_model, N heads, K key-value heads, G = B x K, H d_head,
F d_ff, L layers.
"""

import math
from functools import partial
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from upalm import flash
from upalm.sharding import act_spec, axis_size, constrain, constrain_stream, has_mesh, on_shards, sum_over

if TYPE_CHECKING:
    from upalm.model import ModelConfig


def normalise(x: Float[Array, "... D"], scale: Array | None, config: "ModelConfig") -> Float[Array, "... D"]:
    """RMS norm (or layer norm) in fp32: `x / rms(x) * (norm_offset + scale)`.

    Paper: PaLM section 2 says LayerNorm; Google's code has T5's RMS norm with a zero-centred scale (fact sheet A18),
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


class KeyRange(NamedTuple):
    """The keys `start <= s < end` that a query sees. Every mask of this project is such an interval."""

    start: Int[Array, "B T"]
    end: Int[Array, "B T"]

    def mask(self, n_keys: int) -> Bool[Array, "B T S"]:
        """As a dense mask."""
        s = jnp.arange(n_keys)[None, None]
        return (self.start[..., None] <= s) & (s < self.end[..., None])


def key_range(segment_ids: Int[Array, "B T"], prefix_mask: Bool[Array, "B T"]) -> KeyRange:
    """Prefix-LM attention with packing: from the start of a query's segment to the end of its prefix, or to
    the query itself if that is later.

        segment_ids  1 1 1 1 2 2 2
        prefix_mask  1 1 0 0 1 0 0
        start        0 0 0 0 4 4 4
        end          2 2 3 4 5 6 7

    Paper: U-PaLM section 2.2; equals `same_segment & (causal | (prefix_i & prefix_j))`.
    """
    n = segment_ids.shape[1]
    index = jnp.broadcast_to(jnp.arange(n), segment_ids.shape)
    before = jnp.pad(segment_ids[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    is_start = segment_ids != before
    start = lax.cummax(jnp.where(is_start, index, 0), axis=1)
    # a prefix ends at the next position that is not of it
    boundary = jnp.where(prefix_mask & ~is_start, n, index)
    after = jnp.pad(boundary[:, 1:], ((0, 0), (0, 1)), constant_values=n)
    prefix_end = lax.cummin(after, axis=1, reverse=True)
    return KeyRange(start, jnp.where(prefix_mask, prefix_end, index + 1))


@jax.custom_vjp
def attend(
    q_BTNH: Float[Array, "B T N H"],
    k_GSH: Float[Array, "G S H"],
    v_GSH: Float[Array, "G S H"],
    visible: KeyRange,
) -> Float[Array, "B T N H"]:
    """Attention of N query heads over K shared key-value heads; K = 1 is PaLM's multi-query attention.

    The backward pass forms the weights again from the scores and their log-sum-exp: nothing of size T x S is kept.
    On TPUs it is `flash`, wherever the shapes fit its blocks.
    """
    return _attend(q_BTNH, k_GSH, v_GSH, visible)[0]


def _attend(q_BTNH, k_GSH, v_GSH, visible):
    k_BKSH, v_BKSH = (x.reshape(len(q_BTNH), -1, *x.shape[1:]) for x in (k_GSH, v_GSH))
    q, kv, ranges = _specs(q_BTNH, k_BKSH, visible)
    specs = ((q, kv, kv, ranges), (q, PartitionSpec(*q[:3])))
    out_BTNH, log_total_BTN = on_shards(_forward, *specs, q_BTNH, k_BKSH, v_BKSH, visible)
    out_BTNH, log_total_BTN = (checkpoint_name(x, "attended") for x in (out_BTNH, log_total_BTN))
    return out_BTNH, (q_BTNH, k_BKSH, v_BKSH, visible, out_BTNH, log_total_BTN)


def _attend_backward(saved, d_out_BTNH):
    q_BTNH, k_BKSH, _, visible, _, _ = saved
    q, kv, ranges = _specs(q_BTNH, k_BKSH, visible)
    specs = ((q, kv, kv, ranges, q, PartitionSpec(*q[:3]), q), (q, kv, kv))
    backward = partial(_backward, n_heads=q_BTNH.shape[2])
    d_q_BTNH, *d_kv_BKSH = on_shards(backward, *specs, *saved, d_out_BTNH)
    return d_q_BTNH, *(x.reshape(-1, *x.shape[2:]) for x in d_kv_BKSH), None


attend.defvjp(_attend, _attend_backward)


def _specs(q_BTNH, k_BKSH, visible):
    """How queries, keys and ranges are split. A key head stays with the query heads that share it."""
    n_kv = k_BKSH.shape[1]
    heads = "heads" if n_kv == 1 or n_kv % axis_size("heads") == 0 else None
    q = act_spec(q_BTNH.shape, "batch", None, heads, None)
    kv = act_spec(k_BKSH.shape, "batch", heads if n_kv > 1 else None, None, None)
    return q, kv, jax.tree.map(lambda x: act_spec(x.shape, "batch", None), visible)


def _forward(q_BTNH, k_BKSH, v_BKSH, visible):
    k_GSH, v_GSH = (x.reshape(-1, *x.shape[2:]) for x in (k_BKSH, v_BKSH))
    q_GRH = _scaled(q_BTNH, len(k_GSH))

    def plain():
        scores_GRS = _scores(q_GRH, k_GSH, visible)
        highest = jnp.max(scores_GRS, -1, keepdims=True)
        weights = jnp.exp(scores_GRS - highest)
        total = jnp.sum(weights, -1, keepdims=True)
        out_GRH = jnp.einsum("GRS,GSH->GRH", weights.astype(v_GSH.dtype), v_GSH) / total
        return out_GRH.astype(v_GSH.dtype), (highest + jnp.log(total))[..., 0]

    def kernel():
        return flash.forward(q_GRH, k_GSH, v_GSH, _flash_rows(visible, q_BTNH, len(k_GSH)))

    out_GRH, log_total_GR = _fastest(kernel, plain, q_GRH, k_GSH)
    return _by_position(out_GRH, q_BTNH), _by_position(log_total_GR[..., None], q_BTNH)[..., 0]


def _backward(q_BTNH, k_BKSH, v_BKSH, visible, out_BTNH, log_total_BTN, d_out_BTNH, *, n_heads):
    k_GSH, v_GSH = (x.reshape(-1, *x.shape[2:]) for x in (k_BKSH, v_BKSH))
    n_groups, scale = len(k_GSH), q_BTNH.shape[-1] ** -0.5
    q_GRH, out_GRH, d_out_GRH = _scaled(q_BTNH, n_groups), *(_by_key_head(x, n_groups) for x in (out_BTNH, d_out_BTNH))
    log_total_GR1 = _by_key_head(log_total_BTN[..., None], n_groups)

    def plain():
        weights = jnp.exp(_scores(q_GRH, k_GSH, visible) - log_total_GR1)
        d_v = jnp.einsum("GRS,GRH->GSH", weights.astype(v_GSH.dtype), d_out_GRH)
        d_weights = jnp.einsum("GRH,GSH->GRS", d_out_GRH, v_GSH, preferred_element_type=jnp.float32)
        mean = jnp.sum((d_out_GRH * out_GRH).astype(jnp.float32), -1, keepdims=True)
        d_scores = (weights * (d_weights - mean)).astype(q_GRH.dtype)
        d_q, d_k = jnp.einsum("GRS,GSH->GRH", d_scores, k_GSH), jnp.einsum("GRS,GRH->GSH", d_scores, q_GRH)
        return d_q, d_k, d_v

    def kernel():
        rows = _flash_rows(visible, q_BTNH, n_groups)
        return flash.backward(q_GRH, k_GSH, v_GSH, rows, out_GRH, log_total_GR1[..., 0], d_out_GRH)

    d_q, d_k, d_v = _fastest(kernel, plain, q_GRH, k_GSH)
    d_kv = tuple(x.reshape(k_BKSH.shape) for x in (d_k, d_v))
    if k_BKSH.shape[1] == 1 and q_BTNH.shape[2] < n_heads:  # the other heads that share the keys are elsewhere
        d_kv = sum_over("heads", d_kv)
    return (_by_position(d_q, q_BTNH) * scale, *d_kv)


def _fastest(kernel, plain, q_GRH, k_GSH):
    _, n_keys, d_head = k_GSH.shape
    if not flash.fits(q_GRH.shape[1], n_keys, d_head, k_GSH.dtype.itemsize):
        return plain()
    return lax.platform_dependent(tpu=kernel, default=plain)


def _scores(q_GRH, k_GSH, visible):
    """Masked, fp32, [G, R, S]; R = T * N / K are all the query rows that share a key head."""
    n_groups, r, _ = q_GRH.shape
    scores = jnp.einsum("GRH,GSH->GRS", q_GRH, k_GSH, preferred_element_type=jnp.float32)
    (b, t), mask_BTS = visible.start.shape, visible.mask(k_GSH.shape[1])
    scores = scores.reshape(b, n_groups // b, t, r // t, -1)
    scores = jnp.where(mask_BTS[:, None, :, None], scores, jnp.finfo(jnp.float32).min)
    return scores.reshape(n_groups, r, -1)


def _flash_rows(visible, q_BTNH, n_groups):
    (b, t, n, _), n_kv = q_BTNH.shape, n_groups // len(q_BTNH)
    spread = (x[:, None, :, None] for x in visible)
    start, end = (jnp.broadcast_to(x, (b, n_kv, t, n // n_kv)).reshape(n_groups, -1) for x in spread)
    return flash.Rows(start, end)


def _scaled(q_BTNH, n_groups):
    return _by_key_head(q_BTNH * q_BTNH.shape[-1] ** -0.5, n_groups)


def _by_key_head(x_BTNH, n_groups):
    b, t, n, h = x_BTNH.shape
    n_kv = n_groups // b
    return x_BTNH.reshape(b, t, n_kv, n // n_kv, h).swapaxes(1, 2).reshape(n_groups, -1, h)


def _by_position(x_GRH, like_BTNH):
    b, t, n, _ = like_BTNH.shape
    n_kv, h = len(x_GRH) // b, x_GRH.shape[-1]
    return x_GRH.reshape(b, n_kv, t, n // n_kv, h).swapaxes(1, 2).reshape(b, t, n, h)


class OutputMajor(eqx.Module):
    """A weight with the rows of its matrix along the outputs: how products with few rows, as in decoding, read it
    fastest (XLA:CPU, 16 rows: a quarter faster).
    """

    kernel_OI: Float[Array, "O I"]
    out_shape: tuple[int, ...] = eqx.field(static=True)

    @classmethod
    def of(cls, w: Float[Array, "..."], n_in: int = 1) -> "OutputMajor":
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
Weight = Float[Array, "..."] | OutputMajor


def matmul(x: Float[Array, "..."], w: Weight, n_in: int = 1) -> Float[Array, "..."]:
    """Contract the last `n_in` axes of `x` with the first of `w`, over flattened rows.

    XLA:CPU forms the weight gradient of a [B, T, D] operand from a transposed copy, 2-3 times slower. On a mesh rows
    and positions may both be split, which flattened ones cannot be.
    """
    lead, x_RI = x.shape[: x.ndim - n_in], x.reshape(-1, math.prod(x.shape[x.ndim - n_in :]))
    if isinstance(w, OutputMajor):
        return w.product(x_RI).reshape(*lead, *w.out_shape)
    w = w.astype(x.dtype)
    if has_mesh():
        return jnp.tensordot(x, w, n_in)
    return (x_RI @ w.reshape(x_RI.shape[1], -1)).reshape(*lead, *w.shape[n_in:])


class KeyValue(NamedTuple):
    """Keys (already rotated) and values of one layer: 2 x K x H numbers a token.

    Rows and heads share an axis, row by row: so the product of attention reads the array that a step has written to,
    and XLA does not copy it.
    """

    k: Float[Array, "G S H"]
    v: Float[Array, "G S H"]

    @classmethod
    def of(cls, k_BSKH: Float[Array, "B S K H"], v_BSKH: Float[Array, "B S K H"]) -> "KeyValue":
        """From the projections of a block."""
        shape = (-1, k_BSKH.shape[1], k_BSKH.shape[3])
        return cls(*(x.swapaxes(1, 2).reshape(shape) for x in (k_BSKH, v_BSKH)))

    def write(self, new: "KeyValue", slot: Int[Array, ""] | int) -> "KeyValue":
        """With `new` at positions `slot` and after."""
        return KeyValue(*(lax.dynamic_update_slice_in_dim(a, b, slot, 1) for a, b in zip(self, new, strict=True)))

    def grown(self, n_positions: int) -> "KeyValue":
        """With room for `n_positions` more at the end."""
        return KeyValue(*(jnp.pad(x, ((0, 0), (0, n_positions), (0, 0))) for x in self))


class Block(eqx.Module):
    """`x + Attention(norm(x)) + SwiGLU(norm(x))`: both branches read one norm. No biases.

    Paper: PaLM (arXiv:2204.02311) section 2.
    """

    AXES: ClassVar = {
        "norm": ("embed",),
        "wq": ("embed", "heads", None),
        "wk": ("embed", "kv_heads", None),
        "wv": ("embed", "kv_heads", None),
        "wo": ("heads", None, "embed"),
        "w_gate": ("embed", "mlp"),
        "w_up": ("embed", "mlp"),
        "w_down": ("mlp", "embed"),
        "q_norm": ("heads", None),
        "k_norm": ("kv_heads", None),
    }
    _NORMS: ClassVar = ("norm", "q_norm", "k_norm")

    norm: Float[Array, " D"]
    wq: Float[Array, "D N H"]
    wk: Float[Array, "D K H"]
    wv: Float[Array, "D K H"]
    wo: Float[Array, "N H D"]
    w_gate: Float[Array, "D F"]
    w_up: Float[Array, "D F"]
    w_down: Float[Array, "F D"]
    q_norm: Float[Array, "N H"] | None
    k_norm: Float[Array, "K H"] | None
    config: "ModelConfig" = eqx.field(static=True)

    def __init__(self, config: "ModelConfig", *, key: Array):
        """Kernels from N(0, 1 / n_in) with the fan-in of each logical matrix (PaLM section 5)."""
        d, n, k, h, f = (config.d_model, config.n_heads, config.n_kv_heads, config.d_head, config.d_ff)
        keys = iter(jax.random.split(key, 7))

        def kernel(n_in: int, *shape: int) -> Array:
            return jax.random.normal(next(keys), shape) * n_in**-0.5

        self.norm = unit_scale(config, d)
        self.wq, self.wk, self.wv = kernel(d, d, n, h), kernel(d, d, k, h), kernel(d, d, k, h)
        self.wo = kernel(n * h, n, h, d)
        self.w_gate, self.w_up, self.w_down = kernel(d, d, f), kernel(d, d, f), kernel(f, f, d)
        self.q_norm = unit_scale(config, n, h) if config.qk_norm != "none" else None
        self.k_norm = unit_scale(config, k, h) if config.qk_norm != "none" else None
        self.config = config

    def __call__(
        self,
        x_BTD: Float[Array, "B T D"],
        tables: Rotary,
        visible: KeyRange,
        cache: "KeyValue | None" = None,
        slot: Int[Array, ""] | int = 0,
    ) -> tuple[Float[Array, "B T D"], "KeyValue"]:
        """The block's output and its keys and values; with a `cache`, they go in at `slot` and all of it is seen."""
        h_BTD = normalise(x_BTD, self.norm, self.config)
        if cache is None:
            h_BTD = constrain(h_BTD, "batch", None, None)
        else:  # few rows: these go to where the weights are, not weights to where the rows are
            h_BTD = constrain(h_BTD, None, None, "embed")
        q_BTNH = constrain(matmul(h_BTD, self.wq), "batch", None, "heads", None)
        q_BTNH = rotate(normalise_head(q_BTNH, self.q_norm, self.config), tables)
        kv = self._keys_values(h_BTD, tables)
        if cache is not None:
            kv = cache.write(kv, slot)
        attended_BTNH = attend(q_BTNH, kv.k, kv.v, visible)
        gated_BTF = jax.nn.silu(matmul(h_BTD, self.w_gate)) * matmul(h_BTD, self.w_up)
        branches_BTD = matmul(attended_BTNH, self.wo, n_in=2) + matmul(gated_BTF, self.w_down)
        if cache is None:
            return x_BTD + constrain_stream(branches_BTD), kv
        return x_BTD + constrain(branches_BTD, None, None, "embed"), kv

    def keys_values(self, x_BTD: Float[Array, "B T D"], tables: Rotary) -> "KeyValue":
        """The block's keys and values alone."""
        return self._keys_values(normalise(x_BTD, self.norm, self.config), tables)

    def _keys_values(self, h_BTD: Float[Array, "B T D"], tables: Rotary) -> "KeyValue":
        k_BTKH = normalise_head(matmul(h_BTD, self.wk), self.k_norm, self.config)
        return KeyValue.of(rotate(k_BTKH, tables, is_key=True), matmul(h_BTD, self.wv))

    def cast(self) -> "Block":
        """With its weights in compute precision, before they are gathered: half the bytes."""
        names = [name for name in self.AXES if name not in self._NORMS]
        weights = [getattr(self, name).astype(self.config.compute_dtype) for name in names]
        return eqx.tree_at(lambda block: [getattr(block, name) for name in names], self, weights)

    def output_major(self, dtype: str) -> "Block":
        """A copy for decoding, its weights in `dtype`."""
        names = {name: 2 if name == "wo" else 1 for name in self.AXES if name not in self._NORMS}
        weights = [OutputMajor.of(getattr(self, name).astype(dtype), n_in) for name, n_in in names.items()]
        return eqx.tree_at(lambda block: [getattr(block, name) for name in names], self, weights)
