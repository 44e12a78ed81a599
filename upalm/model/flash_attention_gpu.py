"""Pallas GPU kernels (Triton) for attention over key ranges.

No score leaves the chip, and blocks of keys outside the ranges of a block of queries are not read. Blocks that all its
queries see whole are not masked either: under a causal mask these are all but those on the diagonal. Each program
writes its own part of the result, so that results are the same from run to run. The gradient of the queries has a
kernel of its own, and recomputes the scores once more for it.

Dims: B batch rows, T query positions, S key positions, N query heads, K key heads, H d_head; Q and S are the positions
of one block in a kernel, and J the key blocks, I the query blocks of a row.
"""

import math
import struct
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from etils import epy
from jax import lax
from jaxtyping import Array, Float, Int

with epy.lazy_imports():  # a twelfth of the time that JAX takes to import, for GPUs alone
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton as plgpu

_LOWEST = -(2.0**100)
"""Score of a key that is not seen. A power of two, so that a block without a seen key has weights of one to the last
bit, which the next block's highest score makes zero: `_power` rounds once, and the highest score was rounded before."""

_LOG2_E = math.log2(math.e)
"""Scores times this are exponents of two, of which GPUs have an instruction."""


class Blocks(NamedTuple):
    """Positions of the blocks that a kernel works on, and the resources of one program."""

    queries: int
    keys: int
    warps: int
    stages: int
    """Blocks in flight: those that are read ahead, and the one in use."""


class Tuning(NamedTuple):
    """Blocks of the three kernels."""

    forward: Blocks
    d_queries: Blocks
    d_keys: Blocks


TUNING = {
    64: Tuning(forward=Blocks(128, 64, 4, 3), d_queries=Blocks(64, 64, 4, 2), d_keys=Blocks(64, 64, 4, 3)),
    128: Tuning(forward=Blocks(64, 64, 4, 3), d_queries=Blocks(64, 64, 4, 2), d_keys=Blocks(32, 64, 4, 3)),
    256: Tuning(forward=Blocks(128, 64, 8, 2), d_queries=Blocks(128, 32, 8, 2), d_keys=Blocks(64, 32, 4, 2)),
}
"""Blocks for Hopper by the width of the heads, measured on an H200 (docs/performance.md). Registers hold all sums, and
shared memory the blocks."""


def fits(n_queries: int, n_keys: int, d_head: int, dtype: Any) -> bool:
    """Whether the kernels take these shapes: whole blocks, in bf16."""
    blocks = TUNING.get(d_head, ())
    whole = all(n_queries % b.queries == 0 and n_keys % b.keys == 0 for b in blocks)
    return bool(blocks) and whole and dtype == jnp.bfloat16 and _has_backend()


def _has_backend() -> bool:
    """Whether JAX has what the kernels use; version 0.11 deprecates it."""
    try:
        return all(hasattr(plgpu, name) for name in ("CompilerParams", "elementwise_inline_asm"))
    except ImportError:
        return False


def _tuning(q_BTNH: Array) -> Tuning:
    """Blocks for the width of the heads; `_check` refuses a width that has none."""
    return TUNING.get(q_BTNH.shape[3], TUNING[64])


def _check(q_BTNH: Array, k_BKSH: Array, blocks: Blocks) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of queries and keys, which the blocks must divide."""
    (_, t, n, h), (_, k, s, _) = q_BTNH.shape, k_BKSH.shape
    if t % blocks.queries or s % blocks.keys or n % k or h not in TUNING:
        raise ValueError(
            f"queries {q_BTNH.shape} and keys {k_BKSH.shape}: expected [B, T, N, H] and [B, K, S, H] with T in whole "
            f"{blocks.queries}, S in whole {blocks.keys}, N a multiple of K, and H one of {sorted(TUNING)}."
        )
    return q_BTNH.shape, k_BKSH.shape


def forward(
    q_BTNH: Float[Array, "B T N H"],
    k_BKSH: Float[Array, "B K S H"],
    v_BKSH: Float[Array, "B K S H"],
    start_BT: Int[Array, "B T"],
    end_BT: Int[Array, "B T"],
    *,
    blocks: Blocks | None = None,
    interpret: bool = False,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T N"]]:
    """Attention of queries that see keys `start <= s < end`, and the log-sum-exp of their scores in fp32.

    Raises:
        ValueError: shapes that the blocks do not divide. Ranges are not checked: they lie within S and are not empty.
    """
    blocks = blocks or _tuning(q_BTNH).forward
    (b, t, n, h), (_, k, s, _) = _check(q_BTNH, k_BKSH, blocks)
    n_blocks = t // blocks.queries
    # heads that share keys run together, and of a row the last queries first, because they see the most keys
    by_query = partial(_by_query, blocks.queries, h, lambda n, i, b: (b, n_blocks - 1 - i, n))
    of_keys = pl.BlockSpec((None, None, s, h), lambda head, i, b: (b, head // (n // k), 0, 0))
    out_BTNH, log_total_BNT = pl.pallas_call(
        partial(_forward_kernel, n_keys=blocks.keys, interpret=interpret),
        grid=(n, n_blocks, b),
        in_specs=[by_query("bounds"), by_query("BT"), by_query("BT"), by_query("BTNH"), of_keys, of_keys],
        out_specs=[by_query("BTNH"), by_query("BNT")],
        out_shape=[jax.ShapeDtypeStruct(q_BTNH.shape, q_BTNH.dtype), jax.ShapeDtypeStruct((b, n, t), jnp.float32)],
        **_parameters(blocks),
        interpret=interpret,
        name="flash_forward",
    )(keys_seen(start_BT, end_BT, blocks), start_BT, end_BT, q_BTNH, k_BKSH, v_BKSH)
    return out_BTNH, log_total_BNT.swapaxes(1, 2)


def backward(
    q_BTNH: Float[Array, "B T N H"],
    k_BKSH: Float[Array, "B K S H"],
    v_BKSH: Float[Array, "B K S H"],
    start_BT: Int[Array, "B T"],
    end_BT: Int[Array, "B T"],
    out_BTNH: Float[Array, "B T N H"],
    log_total_BTN: Float[Array, "B T N"],
    d_out_BTNH: Float[Array, "B T N H"],
    *,
    tuning: Tuning | None = None,
    interpret: bool = False,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B K S H"], Float[Array, "B K S H"]]:
    """Gradients of queries, keys and values, the last two summed in fp32 over all queries and heads."""
    tuning = tuning or _tuning(q_BTNH)
    mean_BTN = jnp.sum(d_out_BTNH.astype(jnp.float32) * out_BTNH.astype(jnp.float32), -1)
    log2_total_BNT, mean_BNT = (log_total_BTN * _LOG2_E).swapaxes(1, 2), mean_BTN.swapaxes(1, 2)
    given = Given(start_BT, end_BT, q_BTNH, d_out_BTNH, log2_total_BNT, mean_BNT, k_BKSH, v_BKSH)
    return d_queries(given, tuning.d_queries, interpret), *d_keys(given, tuning.d_keys, interpret)


class Given(NamedTuple):
    """Arrays that the kernels of the gradients read."""

    start_BT: Int[Array, "B T"]
    end_BT: Int[Array, "B T"]
    q_BTNH: Float[Array, "B T N H"]
    d_out_BTNH: Float[Array, "B T N H"]
    log2_total_BNT: Float[Array, "B N T"]
    """Log2 of the sum of each query's exponentials."""
    mean_BNT: Float[Array, "B N T"]
    """Mean gradient of each query's weights."""
    k_BKSH: Float[Array, "B K S H"]
    v_BKSH: Float[Array, "B K S H"]


def d_queries(given: Given, blocks: Blocks, interpret: bool) -> Array:
    """Gradient of the queries.

    Raises:
        ValueError: shapes that the blocks do not divide.
    """
    (b, t, n, h), (_, k, s, _) = _check(given.q_BTNH, given.k_BKSH, blocks)
    n_blocks = t // blocks.queries
    by_query = partial(_by_query, blocks.queries, h, lambda n, i, b: (b, n_blocks - 1 - i, n))
    of_keys = pl.BlockSpec((None, None, s, h), lambda head, i, b: (b, head // (n // k), 0, 0))
    names = "bounds", "BT", "BT", "BTNH", "BTNH", "BNT", "BNT"
    return pl.pallas_call(
        partial(_d_queries_kernel, n_keys=blocks.keys, interpret=interpret),
        grid=(n, n_blocks, b),
        in_specs=[*map(by_query, names), of_keys, of_keys],
        out_specs=by_query("BTNH"),
        out_shape=jax.ShapeDtypeStruct(given.q_BTNH.shape, given.q_BTNH.dtype),
        **_parameters(blocks),
        interpret=interpret,
        name="flash_d_queries",
    )(keys_seen(given.start_BT, given.end_BT, blocks), *given)


def d_keys(given: Given, blocks: Blocks, interpret: bool) -> tuple[Array, Array]:
    """Gradients of the keys and of the values.

    Raises:
        ValueError: shapes that the blocks do not divide.
    """
    (b, t, n, h), (_, k, s, _) = _check(given.q_BTNH, given.k_BKSH, blocks)
    # the blocks of a key head run together, the first ones first, because the most queries see them
    bounds = pl.BlockSpec((None, None, 4), lambda j, k, b: (b, j, 0))
    edges = pl.BlockSpec((None, t), lambda j, k, b: (b, 0))
    of_queries = pl.BlockSpec((None, t, n // k, h), lambda j, k, b: (b, 0, k, 0))
    along = pl.BlockSpec((None, n // k, t), lambda j, k, b: (b, k, 0))
    by_key = pl.BlockSpec((None, None, blocks.keys, h), lambda j, k, b: (b, k, j, 0))
    return pl.pallas_call(
        partial(_d_keys_kernel, n_queries=blocks.queries, interpret=interpret),
        grid=(s // blocks.keys, k, b),
        in_specs=[bounds, edges, edges, of_queries, of_queries, along, along, by_key, by_key],
        out_specs=[by_key, by_key],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (given.k_BKSH, given.v_BKSH)],
        **_parameters(blocks),
        interpret=interpret,
        name="flash_d_keys",
    )(queries_that_see(given.start_BT, given.end_BT, s, blocks), *given)


# --- Blocks that are visited ----------------------------------------------------------------------


def keys_seen(start_BT: Array, end_BT: Array, blocks: Blocks) -> Int[Array, "B I 4"]:
    """Blocks of keys of each block of queries: first, one past the last; and the same of those that all see whole."""
    starts_BIQ, ends_BIQ = (x.reshape(x.shape[0], -1, blocks.queries) for x in (start_BT, end_BT))
    first, last = jnp.min(starts_BIQ, -1) // blocks.keys, -(-jnp.max(ends_BIQ, -1) // blocks.keys)
    whole_first = jnp.clip(-(-jnp.max(starts_BIQ, -1) // blocks.keys), first, last)
    whole_last = jnp.clip(jnp.min(ends_BIQ, -1) // blocks.keys, whole_first, last)
    return jnp.stack([first, last, whole_first, whole_last], -1).astype(jnp.int32)


def queries_that_see(start_BT: Array, end_BT: Array, n_keys: int, blocks: Blocks) -> Int[Array, "B J 4"]:
    """Blocks of queries of each block of keys: first, one past the last; and the same of those that see it whole.

    If the latter are no interval, which packed rows never have, none counts as such.
    """
    starts_BI1Q, ends_BI1Q = (x.reshape(x.shape[0], -1, 1, blocks.queries) for x in (start_BT, end_BT))
    first_key_11J = jnp.arange(0, n_keys, blocks.keys)[None, None]
    sees_BIJ = (jnp.min(starts_BI1Q, -1) < first_key_11J + blocks.keys) & (jnp.max(ends_BI1Q, -1) > first_key_11J)
    whole_BIJ = (jnp.max(starts_BI1Q, -1) <= first_key_11J) & (jnp.min(ends_BI1Q, -1) >= first_key_11J + blocks.keys)
    (first, last), (whole_first, whole_last) = _interval(sees_BIJ), _interval(whole_BIJ)
    is_interval = jnp.sum(whole_BIJ, 1) == whole_last - whole_first
    whole_first, whole_last = (jnp.where(is_interval, x, first) for x in (whole_first, whole_last))
    # where none see it whole, the loop over these blocks is empty, but it has to lie within the others
    whole_first, whole_last = (jnp.clip(x, first, last) for x in (whole_first, whole_last))
    return jnp.stack([first, last, whole_first, whole_last], -1).astype(jnp.int32)


def _interval(is_in_BIJ: Array) -> tuple[Array, Array]:
    """The first true index on the middle axis, and one past the last; both are 0 if none is true."""
    n = is_in_BIJ.shape[1]
    last = jnp.max(jnp.where(is_in_BIJ, jnp.arange(1, n + 1)[None, :, None], 0), 1)
    return jnp.minimum(jnp.argmax(is_in_BIJ, 1), last), last


# --- Kernels --------------------------------------------------------------------------------------


def _forward_kernel(bounds, start, end, q, k, v, out, log_total, *, n_keys, interpret):
    """Attention of one block of queries of one head."""
    q_QH, scale, power = q[...], _scale(q), partial(_power, scale=_scale(q), interpret=interpret)
    start_Q1, end_Q1 = start[...][:, None], end[...][:, None]

    def visit(_, j, carry, is_whole):
        sums_QH, highest_Q, total_Q = carry
        keys = pl.ds(j * n_keys, n_keys)
        scores_QS = _product(q_QH, k[keys, :], (1, 1))
        if not is_whole:
            scores_QS = jnp.where(_sees(j * n_keys, start_Q1, end_Q1, scores_QS, 1), scores_QS, _LOWEST)
        new_highest_Q = jnp.maximum(highest_Q, jnp.max(scores_QS, 1) * scale)
        weights_QS = power(scores_QS, -new_highest_Q[:, None])
        shrink_Q = jnp.exp2(highest_Q - new_highest_Q)
        total_Q = total_Q * shrink_Q + jnp.sum(weights_QS, 1)
        sums_QH = sums_QH * shrink_Q[:, None] + _product(weights_QS.astype(v.dtype), v[keys, :], (1, 0))
        return sums_QH, new_highest_Q, total_Q

    n_queries = q_QH.shape[0]
    carry = jnp.zeros(q_QH.shape, jnp.float32), jnp.full((n_queries,), _LOWEST), jnp.zeros((n_queries,))
    sums_QH, highest_Q, total_Q = _over_blocks(bounds, visit, carry)
    out[...] = (sums_QH / total_Q[:, None]).astype(out.dtype)
    log_total[...] = highest_Q / _LOG2_E + jnp.log(total_Q)


def _d_queries_kernel(bounds, start, end, q, d_out, log2_total, mean, k, v, d_q, *, n_keys, interpret):
    """Gradient of one block of queries of one head."""
    q_QH, d_out_QH, power = q[...], d_out[...], partial(_power, scale=_scale(q), interpret=interpret)
    log2_total_Q1, mean_Q1 = log2_total[...][:, None], mean[...][:, None]
    start_Q1, end_Q1 = start[...][:, None], end[...][:, None]

    def visit(_, j, sums_QH, is_whole):
        keys = pl.ds(j * n_keys, n_keys)
        k_SH = k[keys, :]
        scores_QS = _product(q_QH, k_SH, (1, 1))
        if not is_whole:
            scores_QS = jnp.where(_sees(j * n_keys, start_Q1, end_Q1, scores_QS, 1), scores_QS, _LOWEST)
        weights_QS = power(scores_QS, -log2_total_Q1)
        d_scores_QS = weights_QS * (_product(d_out_QH, v[keys, :], (1, 1)) - mean_Q1)
        return sums_QH + _product(d_scores_QS.astype(k_SH.dtype), k_SH, (1, 0))

    sums_QH = _over_blocks(bounds, visit, jnp.zeros(q_QH.shape, jnp.float32))
    d_q[...] = (sums_QH * q.shape[1] ** -0.5).astype(d_q.dtype)


def _d_keys_kernel(bounds, start, end, q, d_out, log2_total, mean, k, v, d_k, d_v, *, n_queries, interpret):
    """Gradients of one block of keys and values of one head, summed over the query heads that share it."""
    k_SH, v_SH, power = k[...], v[...], partial(_power, scale=_scale(k), interpret=interpret)
    first_key = pl.program_id(0) * k_SH.shape[0]

    def visit(head, i, carry, is_whole):
        d_k_SH, d_v_SH = carry
        queries = pl.ds(i * n_queries, n_queries)
        q_QH, d_out_QH = q[queries, head, :], d_out[queries, head, :]
        scores_SQ = _product(k_SH, q_QH, (1, 1))
        if not is_whole:
            start_1Q, end_1Q = start[queries][None], end[queries][None]
            scores_SQ = jnp.where(_sees(first_key, start_1Q, end_1Q, scores_SQ, 0), scores_SQ, _LOWEST)
        weights_SQ = power(scores_SQ, -log2_total[head, queries][None])
        d_v_SH += _product(weights_SQ.astype(d_out_QH.dtype), d_out_QH, (1, 0))
        d_scores_SQ = weights_SQ * (_product(v_SH, d_out_QH, (1, 1)) - mean[head, queries][None])
        d_k_SH += _product(d_scores_SQ.astype(q_QH.dtype), q_QH, (1, 0))
        return d_k_SH, d_v_SH

    zeros_SH = jnp.zeros(k_SH.shape, jnp.float32)
    d_k_SH, d_v_SH = _over_blocks(bounds, visit, (zeros_SH, zeros_SH), n_heads=q.shape[1])
    d_k[...] = (d_k_SH * k.shape[1] ** -0.5).astype(d_k.dtype)
    d_v[...] = d_v_SH.astype(d_v.dtype)


def _over_blocks(bounds, visit, carry, n_heads=1):
    """Loop over each head's blocks that need no mask, and then over those on both sides of them.

    One loop runs over the blocks of all heads, because a loop waits for its first blocks, and reads ahead afterwards.
    """
    first, last, whole_first, whole_last = (bounds[i] for i in range(4))
    n_before, n_whole = whole_first - first, whole_last - whole_first
    n_edges = n_before + last - whole_last

    def split(i, n):
        return (0, i) if n_heads == 1 else (lax.div(i, n), lax.rem(i, n))

    def visit_whole(i, carry):
        head, i = split(i, n_whole)
        return visit(head, whole_first + i, carry, is_whole=True)

    def visit_edge(i, carry):
        head, i = split(i, n_edges)
        return visit(head, jnp.where(i < n_before, first + i, whole_last + i - n_before), carry, is_whole=False)

    carry = lax.fori_loop(0, n_heads * n_whole, visit_whole, carry)
    return lax.fori_loop(0, n_heads * n_edges, visit_edge, carry)


def _sees(first_key, start, end, scores, axis):
    """Mask of the scores whose key the query sees; keys lie along `axis`, the first of them is `first_key`."""
    key = first_key + lax.broadcasted_iota(jnp.int32, scores.shape, axis)
    return (start <= key) & (key < end)


def _scale(x):
    """Factor from products of queries and keys to exponents of two: 1 / sqrt(d_head), times log2(e)."""
    return x.shape[-1] ** -0.5 * _LOG2_E


def _power(scores, shift, *, scale, interpret):
    """Two to the power of `scores * scale + shift`.

    Written out, because the compiler would take two instructions for the sum and four for powers below 2**-126, and the
    exponentials of narrow heads take as long as their products.
    """
    shift = jnp.broadcast_to(shift, scores.shape)
    if interpret:
        return jnp.exp2(scores * scale + shift)
    [power] = plgpu.elementwise_inline_asm(
        f"{{ .reg .f32 x; fma.rn.f32 x, $1, 0f{struct.pack('>f', scale).hex()}, $2; ex2.approx.ftz.f32 $0, x; }}",
        args=[scores, shift],
        constraints="=f,f,f",
        pack=1,
        result_shape_dtypes=[jax.ShapeDtypeStruct(scores.shape, jnp.float32)],
    )
    return power


def _product(a, b, axes):
    return lax.dot_general(a, b, (((axes[0],), (axes[1],)), ((), ())), preferred_element_type=jnp.float32)


# --- Grid -----------------------------------------------------------------------------------------


def _by_query(n_queries: int, d_head: int, place: Any, axes: str) -> "pl.BlockSpec":
    """Block spec of one block of queries in an array with `axes`; `place` tells row, block and head of a program."""

    def pick(*names: str):
        def index(*program: Any):
            row, block, head = place(*program)
            at = {"B": row, "T": block, "N": head, "0": 0}
            return tuple(at[name] for name in names)

        return index

    if axes == "bounds":
        return pl.BlockSpec((None, None, 4), pick("B", "T", "0"))
    if axes == "BT":
        return pl.BlockSpec((None, n_queries), pick("B", "T"))
    if axes == "BNT":
        return pl.BlockSpec((None, None, n_queries), pick("B", "N", "T"))
    return pl.BlockSpec((None, n_queries, None, d_head), pick("B", "T", "N", "0"))


def _parameters(blocks: Blocks) -> dict[str, Any]:
    return {"compiler_params": plgpu.CompilerParams(num_warps=blocks.warps, num_stages=blocks.stages)}
