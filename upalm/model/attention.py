"""Prefix-LM masks as key ranges, multi-query attention, and the key-value cache."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from upalm.distributed.sharding import act_spec, axis_size, on_shards, sum_over
from upalm.model import flash_attention


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
        return flash_attention.forward(q_GRH, k_GSH, v_GSH, _flash_rows(visible, q_BTNH, len(k_GSH)))

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
        return flash_attention.backward(q_GRH, k_GSH, v_GSH, rows, out_GRH, log_total_GR1[..., 0], d_out_GRH)

    d_q, d_k, d_v = _fastest(kernel, plain, q_GRH, k_GSH)
    d_kv = tuple(x.reshape(k_BKSH.shape) for x in (d_k, d_v))
    if k_BKSH.shape[1] == 1 and q_BTNH.shape[2] < n_heads:  # the other heads that share the keys are elsewhere
        d_kv = sum_over("heads", d_kv)
    return (_by_position(d_q, q_BTNH) * scale, *d_kv)


def _fastest(kernel, plain, q_GRH, k_GSH):
    _, n_keys, d_head = k_GSH.shape
    if not flash_attention.fits(q_GRH.shape[1], n_keys, d_head, k_GSH.dtype.itemsize):
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
    return flash_attention.RowRanges(start, end)


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
