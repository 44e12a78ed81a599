"""Pallas TPU kernels for attention over key ranges.

No score leaves the chip's memory, and blocks of keys outside every range are never visited. The queries of all heads
that share a key head are rows of one matrix, so that the keys are read once for all of them. Scores are held with keys
along rows, so that a query's range and sum lie along lanes. A call holds all its keys; longer rows take several calls.

Dims: G batch rows x key heads, R query rows (positions x query heads per key head), S key positions, H d_head.
"""

from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from etils import epy
from jax import lax
from jaxtyping import Array, Float, Int

with epy.lazy_imports():  # a twelfth of the time that JAX takes to import, for TPUs alone
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

_LOWEST = -1e30


_VMEM = 12 * 2**20
"""Most bytes for the keys of a call and what belongs to them; blocks of queries take the rest of the 16 MiB of a v4."""

_SMEM = 2**19
"""Most bytes of the 1 MiB for the blocks that rows see, as arrays of two axes, of which the second is padded to 128."""


class RowRanges(NamedTuple):
    """Keys `start <= s < end` that each query row sees."""

    start: Int[Array, "G R"]
    end: Int[Array, "G R"]


def fits(n_rows: int, n_keys: int, d_head: int) -> bool:
    """Whether the kernels take these shapes: whole blocks."""
    return bool(_block(n_rows) and _block(n_keys)) and d_head % 128 == 0


def forward(
    q_GRH: Float[Array, "G R H"],
    k_GSH: Float[Array, "G S H"],
    v_GSH: Float[Array, "G S H"],
    rows: RowRanges,
    *,
    interpret: bool = False,
) -> tuple[Float[Array, "G R H"], Float[Array, "G R"]]:
    """Attention of scaled queries, and the log-sum-exp of each row's scores."""
    n_bytes = 4 * k_GSH.dtype.itemsize  # keys and values, those of this step and of the next
    parts = _parts(rows, k_GSH.shape, n_bytes)
    results = [_forward(q_GRH, k_GSH[:, keys], v_GSH[:, keys], part, interpret) for keys, part in parts]
    out_GRH, log_total_GR = reduce(_merge, results)
    return out_GRH.astype(q_GRH.dtype), log_total_GR


def _merge(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
    """Attention over the keys of two calls, from that over the keys of each."""
    (a_GRH, a_GR), (b_GRH, b_GR) = a, b
    log_total_GR = jnp.logaddexp(a_GR, b_GR)
    share_of_a, share_of_b = (jnp.exp(x - log_total_GR)[..., None] for x in (a_GR, b_GR))
    return share_of_a * a_GRH.astype(jnp.float32) + share_of_b * b_GRH.astype(jnp.float32), log_total_GR


def _forward(q_GRH: Array, k_GSH: Array, v_GSH: Array, rows: RowRanges, interpret: bool) -> tuple[Array, Array]:
    (g, r, h), s = q_GRH.shape, k_GSH.shape[1]
    call = _Call(g, r, s, h)
    out, log_total = pl.pallas_call(
        partial(_forward_kernel, block=call.keys),
        grid_spec=call.grid(
            inputs=[call.by_row, call.whole, call.whole, call.along, call.along],
            outputs=[call.by_row, call.along],
            scratch=[(1, call.rows), (1, call.rows), (call.rows, h)],
        ),
        out_shape=[
            jax.ShapeDtypeStruct(q_GRH.shape, q_GRH.dtype),
            jax.ShapeDtypeStruct((g, 1, r), jnp.float32),
        ],
        **call.cost(q_GRH.dtype.itemsize, n_products=2),
        compiler_params=_parameters(),
        interpret=interpret,
        name="flash_forward",
    )(*call.blocks_seen(rows), q_GRH, k_GSH, v_GSH, rows.start[:, None], rows.end[:, None])
    return out, log_total[:, 0]


def backward(
    q_GRH: Float[Array, "G R H"],
    k_GSH: Float[Array, "G S H"],
    v_GSH: Float[Array, "G S H"],
    rows: RowRanges,
    out_GRH: Float[Array, "G R H"],
    log_total_GR: Float[Array, "G R"],
    d_out_GRH: Float[Array, "G R H"],
    *,
    interpret: bool = False,
) -> tuple[Float[Array, "G R H"], Float[Array, "G S H"], Float[Array, "G S H"]]:
    """Gradients of scaled queries, keys and values, the last two summed in fp32 over all rows."""
    n_bytes = 8 * k_GSH.dtype.itemsize + 8  # as in `forward`, as much again for the gradients, and their fp32 sums
    parts = _parts(rows, k_GSH.shape, n_bytes)
    mean_GR = jnp.sum((d_out_GRH * out_GRH).astype(jnp.float32), -1)
    by_row = log_total_GR, mean_GR, d_out_GRH
    results = [_backward(q_GRH, k_GSH[:, keys], v_GSH[:, keys], part, *by_row, interpret) for keys, part in parts]
    d_q, d_k, d_v = zip(*results, strict=True)
    d_q_GRH = reduce(lambda a, b: a.astype(jnp.float32) + b.astype(jnp.float32), d_q)
    return d_q_GRH.astype(q_GRH.dtype), jnp.concatenate(d_k, 1), jnp.concatenate(d_v, 1)


def _backward(
    q_GRH: Array,
    k_GSH: Array,
    v_GSH: Array,
    rows: RowRanges,
    log_total_GR: Array,
    mean_GR: Array,
    d_out_GRH: Array,
    interpret: bool,
) -> tuple[Array, Array, Array]:
    (g, r, h), s = q_GRH.shape, k_GSH.shape[1]
    call = _Call(g, r, s, h, most_rows=256)
    along = [x[:, None] for x in (*rows, log_total_GR, mean_GR)]
    return pl.pallas_call(
        partial(_backward_kernel, block=call.keys),
        grid_spec=call.grid(
            inputs=[call.by_row, call.whole, call.whole, *[call.along] * 4, call.by_row],
            outputs=[call.by_row, call.whole, call.whole],
            scratch=[(call.rows, h), (s, h), (s, h)],
        ),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q_GRH, k_GSH, v_GSH)],
        **call.cost(q_GRH.dtype.itemsize, n_products=5),
        compiler_params=_parameters(),
        interpret=interpret,
        name="flash_backward",
    )(*call.blocks_seen(rows), q_GRH, k_GSH, v_GSH, *along, d_out_GRH)


def _parts(rows: RowRanges, shape: tuple[int, ...], n_bytes: int) -> list[tuple[slice, RowRanges]]:
    """Keys of each call, and the ranges within them, for `n_bytes` of VMEM per number of the keys.

    Calls take a power of two, so that rows of usual lengths are cut into equal parts.
    """
    _, n_keys, d_head = shape
    most = 1 << ((_VMEM // (d_head * n_bytes)).bit_length() - 1)
    if n_keys <= most:
        return [(slice(None), rows)]
    parts = [slice(start, min(start + most, n_keys)) for start in range(0, n_keys, most)]
    return [(keys, RowRanges(*(jnp.clip(x, keys.start, keys.stop) - keys.start for x in rows))) for keys in parts]


# --- Kernels --------------------------------------------------------------------------------------


def _forward_kernel(first, last, q, k, v, start, end, out, log_total, highest, total, sums, *, block):
    """One block of query rows; `first` and `last` are scalars, the last three references are scratch."""
    highest[...] = jnp.full_like(highest, _LOWEST)
    total[...] = jnp.zeros_like(total)
    sums[...] = jnp.zeros_like(sums)

    def visit(i, _):
        k_SH, v_SH = (x[0, pl.ds(pl.multiple_of(i * block, block), block)] for x in (k, v))
        scores_SR = _scores(i * block, q[0], k_SH, start[0], end[0])
        old_highest = highest[...]
        new_highest = jnp.maximum(old_highest, jnp.max(scores_SR, 0, keepdims=True))
        weights_SR = jnp.exp(scores_SR - new_highest)
        shrink = jnp.exp(old_highest - new_highest)
        highest[...] = new_highest
        total[...] = total[...] * shrink + jnp.sum(weights_SR, 0, keepdims=True)
        sums[...] = sums[...] * shrink.T + _product(weights_SR.astype(v_SH.dtype), v_SH, (0, 0))

    _over_blocks(first, last, visit)
    safe_total = jnp.maximum(total[...], 1e-30)
    out[0] = (sums[...] / safe_total.T).astype(out.dtype)
    log_total[0] = highest[...] + jnp.log(safe_total)


def _backward_kernel(
    first, last, q, k, v, start, end, log_total, mean, d_out, d_q, d_k, d_v, d_q_sums, d_k_sums, d_v_sums, *, block
):
    """Gradients of one block of query rows; keys and values sum theirs over all blocks."""

    @pl.when(pl.program_id(1) == 0)
    def _():
        d_k_sums[...] = jnp.zeros_like(d_k_sums)
        d_v_sums[...] = jnp.zeros_like(d_v_sums)

    d_q_sums[...] = jnp.zeros_like(d_q_sums)

    def visit(i, _):
        keys = pl.ds(pl.multiple_of(i * block, block), block)
        k_SH, v_SH, q_RH, d_out_RH = k[0, keys], v[0, keys], q[0], d_out[0]
        scores_SR = _scores(i * block, q_RH, k_SH, start[0], end[0])
        weights_SR = jnp.exp(scores_SR - log_total[0])
        d_v_sums[keys] += _product(weights_SR.astype(v_SH.dtype), d_out_RH, (1, 0))
        d_scores_SR = (weights_SR * (_product(v_SH, d_out_RH, (1, 1)) - mean[0])).astype(k_SH.dtype)
        d_k_sums[keys] += _product(d_scores_SR, q_RH, (1, 0))
        d_q_sums[...] += _product(d_scores_SR, k_SH, (0, 0))

    _over_blocks(first, last, visit)
    d_q[0] = d_q_sums[...].astype(d_q.dtype)

    @pl.when(pl.program_id(1) == pl.num_programs(1) - 1)
    def _():
        d_k[0] = d_k_sums[...].astype(d_k.dtype)
        d_v[0] = d_v_sums[...].astype(d_v.dtype)


def _over_blocks(first, last, body):
    g, r = pl.program_id(0), pl.program_id(1)
    at = (g, r) if len(first.shape) == 2 else g * pl.num_programs(1) + r
    lax.fori_loop(first[at], last[at], body, None)


def _scores(at, q_RH, k_SH, start_1R, end_1R):
    scores_SR = _product(k_SH, q_RH, (1, 1))
    key = at + lax.broadcasted_iota(jnp.int32, scores_SR.shape, 0)
    return jnp.where((start_1R <= key) & (key < end_1R), scores_SR, _LOWEST)


def _product(a, b, axes):
    return lax.dot_general(a, b, (((axes[0],), (axes[1],)), ((), ())), preferred_element_type=jnp.float32)


# --- Grid -----------------------------------------------------------------------------------------


class _Call:
    """Grid of a call: one step per batch row and key head, and block of query rows."""

    def __init__(self, g: int, r: int, s: int, h: int, most_rows: int = 512):
        if not fits(r, s, h):
            raise ValueError(f"{r} query rows, {s} keys and heads of {h}: expected multiples of 128.")
        self.shape = (g, r, s, h)
        self.rows, self.keys = _block(r, most_rows), _block(s)
        self.by_row = pl.BlockSpec((1, self.rows, h), lambda g, r, *_: (g, r, 0))
        self.whole = pl.BlockSpec((1, s, h), lambda g, r, *_: (g, 0, 0))
        self.along = pl.BlockSpec((1, 1, self.rows), lambda g, r, *_: (g, 0, r))

    def grid(self, *, inputs, outputs, scratch):
        g, r, _, _ = self.shape
        return pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(g, r // self.rows),
            in_specs=inputs,
            out_specs=outputs,
            scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
        )

    def blocks_seen(self, rows: RowRanges) -> tuple[Array, Array]:
        """First block of keys that each block of rows sees, and one past the last; on one axis if two do not fit."""
        g, r, _, _ = self.shape
        padded = -(-r // self.rows // 128) * 128
        shape = (g, -1) if 2 * 4 * g * padded <= _SMEM else (-1,)
        start, end = (x.reshape(*shape, self.rows) for x in rows)
        return jnp.min(start, -1) // self.keys, -(-jnp.max(end, -1) // self.keys)

    def cost(self, itemsize: int, *, n_products: int) -> dict[str, Any]:
        """Cost as the papers count it, as if every query saw every key; for the compiler and `planning.hlo`."""
        g, r, s, h = self.shape
        n_passes = 2 if n_products == 2 else 4
        estimate = pl.CostEstimate(
            flops=2 * n_products * g * r * s * h,
            transcendentals=g * r * s,
            bytes_accessed=itemsize * n_passes * g * h * (r + s),
        )
        return {"cost_estimate": estimate, "metadata": {"flops": str(estimate.flops)}}


def _block(n: int, most: int = 512) -> int:
    """Largest block of at most `most` that divides n; 0 for none."""
    return next((block for block in (512, 256, 128) if n % block == 0 and block <= most), 0)


def _parameters() -> "pltpu.CompilerParams":
    return pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary"), fuse_transposed_lhs_in_matmul=True)
