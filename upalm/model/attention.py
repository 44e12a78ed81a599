"""Prefix-LM masks as key ranges; multi-query attention; key-value cache.

Dims: B batch rows, T query positions, S key positions, N query heads, K key-value heads, H d_head;
G = B x K key heads of all rows, R = T x N / K query rows that share a key head.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from upalm.distributed.sharding import LogicalAxes, act_spec, axis_size, on_shards, sum_over
from upalm.model import flash_attention, flash_attention_gpu


class KeyRange(NamedTuple):
    """The keys `start <= s < end` that a query sees. Every mask of this project is such an interval, and none is empty.

    Attention to no key has another output on each platform, and cuDNN's gradient of it may be NaN.
    """

    start: Int[Array, "B T"]
    end: Int[Array, "B T"]

    def mask(self, n_keys: int) -> Bool[Array, "B T S"]:
        """The dense mask over `n_keys` keys."""
        s = jnp.arange(n_keys)[None, None]
        return (self.start[..., None] <= s) & (s < self.end[..., None])


def attention_reference(
    q_BTNH: Float[Array, "B T N H"],
    k_BKSH: Float[Array, "B K S H"],
    v_BKSH: Float[Array, "B K S H"],
    visible: KeyRange,
) -> Float[Array, "B T N H"]:
    """Attention by its definition, with a dense mask. `attend` computes the same in less time and memory.

    Paper: PaLM section 2, multi-query attention: the query heads share K = 1 key-value head.
    """
    n_shared, d_head = q_BTNH.shape[2] // k_BKSH.shape[1], q_BTNH.shape[3]
    k_BNSH, v_BNSH = (jnp.repeat(x, n_shared, axis=1) for x in (k_BKSH, v_BKSH))
    scores_BNTS = jnp.einsum("BTNH,BNSH->BNTS", q_BTNH * d_head**-0.5, k_BNSH)
    mask_B1TS = visible.mask(k_BKSH.shape[2])[:, None]
    weights_BNTS = jax.nn.softmax(jnp.where(mask_B1TS, scores_BNTS, -jnp.inf))
    return jnp.einsum("BNTS,BNSH->BTNH", weights_BNTS, v_BNSH)


def key_range(segment_ids: Int[Array, "B T"], prefix_mask: Bool[Array, "B T"]) -> KeyRange:
    """Key ranges of prefix-LM attention over packed rows.

    A query sees from the start of its segment to the end of its prefix, or to itself if that is later:

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
    # a prefix ends at the next position outside it
    boundary = jnp.where(prefix_mask & ~is_start, n, index)
    after = jnp.pad(boundary[:, 1:], ((0, 0), (0, 1)), constant_values=n)
    prefix_end = lax.cummin(after, axis=1, reverse=True)
    return KeyRange(start, jnp.where(prefix_mask, prefix_end, index + 1))


# --- Attention with its own gradient --------------------------------------------------------------


@jax.custom_vjp
def attend(
    q_BTNH: Float[Array, "B T N H"],
    k_BKSH: Float[Array, "B K S H"],
    v_BKSH: Float[Array, "B K S H"],
    visible: KeyRange,
) -> Float[Array, "B T N H"]:
    """Attention of N query heads over K shared key-value heads; K = 1 is PaLM's multi-query attention.

    The backward pass recomputes the weights from the scores and their log-sum-exp, so nothing of size T x S is kept.
    TPUs run the kernels of `flash_attention`, and NVIDIA GPUs in bf16 those of `flash_attention_gpu` or cuDNN's, where
    these take the shapes. On a mesh each device has some rows, and of them some heads or some positions (`query_axes`).
    """
    return _attend_forward(q_BTNH, k_BKSH, v_BKSH, visible)[0]


class _Saved(NamedTuple):
    """Arrays that the backward pass needs."""

    q: Float[Array, "B T N H"]
    k: Float[Array, "B K S H"]
    v: Float[Array, "B K S H"]
    visible: KeyRange
    out: Float[Array, "B T N H"]
    log_total: Float[Array, "B T N"]
    """Log-sum-exp of each query's scores."""


def _attend_forward(q_BTNH, k_BKSH, v_BKSH, visible) -> tuple[Float[Array, "B T N H"], _Saved]:
    specs = _specs(q_BTNH, k_BKSH, visible)
    in_specs, out_specs = (specs.q, specs.k, specs.v, specs.visible), (specs.out, specs.log_total)
    results = on_shards(_forward, in_specs, out_specs, q_BTNH, k_BKSH, v_BKSH, visible)
    out_BTNH, log_total_BTN = (checkpoint_name(x, "attended") for x in results)
    return out_BTNH, _Saved(q_BTNH, k_BKSH, v_BKSH, visible, out_BTNH, log_total_BTN)


def _attend_backward(saved: _Saved, d_out_BTNH) -> tuple[Array, Array, Array, None]:
    specs = _specs(saved.q, saved.k, saved.visible)
    backward = partial(_backward, is_shared=any(specs.q[1:3]) and specs.k[1] is None)
    gradients = on_shards(backward, (specs, specs.out), (specs.q, specs.k, specs.v), saved, d_out_BTNH)
    return *gradients, None


attend.defvjp(_attend_forward, _attend_backward)


def query_axes(n_heads: int, n_kv_heads: int) -> LogicalAxes:
    """Logical axes of queries [B, T, N, H] in attention.

    Heads are split if their key heads can be with them, or if there is one key head, which all devices have. Otherwise
    positions are split, and each device has all key heads.
    """
    n_devices = axis_size("heads")
    by_head = n_heads % n_devices == 0 and (n_kv_heads == 1 or n_kv_heads % n_devices == 0)
    return ("batch", None, "heads", None) if by_head else ("batch", "seq", None, None)


def _specs(q_BTNH: Array, k_BKSH: Array, visible: KeyRange) -> _Saved:
    """Layout of each array on the mesh."""
    n_kv = k_BKSH.shape[1]
    q = act_spec(q_BTNH.shape, *query_axes(q_BTNH.shape[2], n_kv))
    kv = act_spec(k_BKSH.shape, "batch", "heads" if n_kv > 1 and q[2] else None, None, None)
    ranges: Any = jax.tree.map(lambda _: PartitionSpec(*q[:2]), visible)
    specs: Any = _Saved(q, kv, kv, ranges, q, PartitionSpec(*q[:3]))  # pyright: ignore[reportArgumentType]
    return specs


def _forward(
    q_BTNH: Float[Array, "B T N H"], k_BKSH: Float[Array, "B K S H"], v_BKSH: Float[Array, "B K S H"], visible: KeyRange
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T N"]]:
    """Attention of one device's rows and heads, and the log-sum-exp of the scores."""
    n_heads, n_kv = q_BTNH.shape[2], k_BKSH.shape[1]
    q_GRH, k_GSH, v_GSH = _scaled_rows(q_BTNH, n_kv), _merge(k_BKSH), _merge(v_BKSH)

    def by_position(out_GRH: Array, log_total_GR: Array) -> tuple[Array, Array]:
        log_total_BTN1 = _by_position(log_total_GR[..., None], n_kv, n_heads)
        return _by_position(out_GRH, n_kv, n_heads), log_total_BTN1[..., 0]

    def plain() -> tuple[Array, Array]:
        scores_GRS = _scores(q_GRH, k_GSH, visible)
        highest_GR1 = jnp.max(scores_GRS, -1, keepdims=True)
        weights_GRS = jnp.exp(scores_GRS - highest_GR1)
        total_GR1 = jnp.sum(weights_GRS, -1, keepdims=True)
        out_GRH = jnp.einsum("GRS,GSH->GRH", weights_GRS.astype(v_GSH.dtype), v_GSH) / total_GR1
        return by_position(out_GRH.astype(v_GSH.dtype), (highest_GR1 + jnp.log(total_GR1))[..., 0])

    def tpu() -> tuple[Array, Array]:
        return by_position(*flash_attention.forward(q_GRH, k_GSH, v_GSH, _flash_rows(visible, q_GRH)))

    def pallas() -> tuple[Array, Array]:
        return flash_attention_gpu.forward(q_BTNH, k_BKSH, v_BKSH, *visible)

    def cudnn() -> tuple[Array, Array]:
        unused_BTN = jnp.zeros(q_BTNH.shape[:3], jnp.float32)  # the backward pass asks the library again
        return library_attention(q_BTNH, k_BKSH, v_BKSH, visible), unused_BTN

    return _fastest(plain, tpu, {"pallas": pallas, "cuDNN": cudnn}, q_BTNH, k_BKSH)


def _backward(
    saved: _Saved, d_out_BTNH: Float[Array, "B T N H"], *, is_shared: bool
) -> tuple[Float[Array, "B T N H"], Float[Array, "B K S H"], Float[Array, "B K S H"]]:
    """Gradients of one device's queries, keys and values; `is_shared` if other devices' queries share the keys."""
    n_heads, d_head, n_kv = *saved.q.shape[2:], saved.k.shape[1]
    q_GRH, k_GSH, v_GSH = _scaled_rows(saved.q, n_kv), _merge(saved.k), _merge(saved.v)
    out_GRH, d_out_GRH = _by_key_head(saved.out, n_kv), _by_key_head(d_out_BTNH, n_kv)
    log_total_GR1 = _by_key_head(saved.log_total[..., None], n_kv)

    def by_position(d_q_GRH: Array, d_k_GSH: Array, d_v_GSH: Array) -> tuple[Array, Array, Array]:
        d_q_BTNH = _by_position(d_q_GRH, n_kv, n_heads) * d_head**-0.5
        return d_q_BTNH, d_k_GSH.reshape(saved.k.shape), d_v_GSH.reshape(saved.v.shape)

    def plain() -> tuple[Array, Array, Array]:
        weights_GRS = jnp.exp(_scores(q_GRH, k_GSH, saved.visible) - log_total_GR1)
        d_v_GSH = jnp.einsum("GRS,GRH->GSH", weights_GRS.astype(v_GSH.dtype), d_out_GRH)
        d_weights_GRS = jnp.einsum("GRH,GSH->GRS", d_out_GRH, v_GSH, preferred_element_type=jnp.float32)
        mean_GR1 = jnp.sum((d_out_GRH * out_GRH).astype(jnp.float32), -1, keepdims=True)
        d_scores_GRS = (weights_GRS * (d_weights_GRS - mean_GR1)).astype(q_GRH.dtype)
        d_q_GRH = jnp.einsum("GRS,GSH->GRH", d_scores_GRS, k_GSH)
        return by_position(d_q_GRH, jnp.einsum("GRS,GRH->GSH", d_scores_GRS, q_GRH), d_v_GSH)

    def tpu() -> tuple[Array, Array, Array]:
        rows, log_total_GR = _flash_rows(saved.visible, q_GRH), log_total_GR1[..., 0]
        return by_position(*flash_attention.backward(q_GRH, k_GSH, v_GSH, rows, out_GRH, log_total_GR, d_out_GRH))

    def pallas() -> tuple[Array, Array, Array]:
        results = saved.out, saved.log_total, d_out_BTNH
        return flash_attention_gpu.backward(saved.q, saved.k, saved.v, *saved.visible, *results)

    def cudnn() -> tuple[Array, Array, Array]:
        _, gradient = jax.vjp(partial(library_attention, visible=saved.visible), saved.q, saved.k, saved.v)
        return gradient(d_out_BTNH)

    d_q_BTNH, d_k_BKSH, d_v_BKSH = _fastest(plain, tpu, {"pallas": pallas, "cuDNN": cudnn}, saved.q, saved.k)
    if is_shared:
        d_k_BKSH, d_v_BKSH = sum_over("heads", (d_k_BKSH, d_v_BKSH))
    return d_q_BTNH, d_k_BKSH, d_v_BKSH


def _fastest(
    plain: Callable[[], Any],
    tpu: Callable[[], Any],
    cuda: dict["GpuKernel", Callable[[], Any]],
    q_BTNH: Array,
    k_BKSH: Array,
) -> Any:
    """Result of the platform's kernel if it takes the shapes, and of `plain` otherwise."""
    (_, t, n, h), (_, k, s, _) = q_BTNH.shape, k_BKSH.shape
    kernels = {}
    if flash_attention.fits(t * n // k, s, h):
        kernels["tpu"] = tpu
    gpu_kernel = choose_gpu_kernel(t, s, h, k_BKSH.dtype) if q_BTNH.dtype == k_BKSH.dtype else None
    if gpu_kernel:
        kernels["cuda"] = cuda[gpu_kernel]
    return lax.platform_dependent(**kernels, default=plain) if kernels else plain()


GpuKernel = Literal["pallas", "cuDNN"]
"""Attention on GPUs without scores in memory: `flash_attention_gpu`, or cuDNN's."""

GPU_KERNELS: tuple[GpuKernel, ...] = ("pallas", "cuDNN")
"""Kernels for NVIDIA GPUs, the preferred one first. Without any, GPUs attend by the plain path."""


def choose_gpu_kernel(n_queries: int, n_keys: int, d_head: int, dtype: Any) -> GpuKernel | None:
    """The first of `GPU_KERNELS` that takes these shapes on this machine's GPU; None for the plain path."""
    shape = n_queries, n_keys, d_head, dtype
    takes = {"pallas": gpu_generation() == 9 and flash_attention_gpu.fits(*shape), "cuDNN": library_fits(*shape)}
    return next((name for name in GPU_KERNELS if takes[name]), None)


def whole_positions(d_head: int, dtype: Any) -> int:
    """Number whose multiples, as queries and as keys, a kernel of this machine's GPU takes; 1 if it has no kernel."""
    return 128 if choose_gpu_kernel(128, 128, d_head, dtype) else 1


def library_fits(n_queries: int, n_keys: int, d_head: int, dtype: Any) -> bool:
    """Whether cuDNN's attention and its gradient take these shapes on this machine's GPU. It knows no fp32.

    Keys fill blocks of 128, because the gradient of cuDNN before 9.15.1 can read beyond other numbers of keys.
    """
    whole = n_queries % 2 == 0 and n_keys % 128 == 0 and d_head % 8 == 0
    return whole and dtype == jnp.bfloat16 and d_head <= max_library_head()


def max_library_head() -> int:
    """Widest head whose gradient cuDNN has on this machine's GPU; 0 without an NVIDIA GPU that has bf16."""
    generation = gpu_generation()
    return 256 if generation == 9 else 128 if generation >= 8 else 0


def gpu_generation() -> int:
    """Major compute capability of JAX's default device, 0 if that is no NVIDIA GPU. All GPUs of a host are alike.

    8 is Ampere and Ada, 9 Hopper, 10 and 12 Blackwell.
    """
    device = jax.config.values["jax_default_device"] or jax.local_devices()[0]
    device = jax.local_devices(backend=device)[0] if isinstance(device, str) else device
    return int(device.compute_capability.split(".")[0]) if "cuda" in device.client.platform_version else 0


def library_attention(
    q_BTNH: Float[Array, "B T N H"],
    k_BKSH: Float[Array, "B K S H"],
    v_BKSH: Float[Array, "B K S H"],
    visible: KeyRange,
    *,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Float[Array, "B T N H"]:
    """Attention by JAX's own function. cuDNN forms no scores, and reads one mask per row for all heads."""
    k_BSKH, v_BSKH, mask_B1TS = k_BKSH.swapaxes(1, 2), v_BKSH.swapaxes(1, 2), visible.mask(k_BKSH.shape[2])[:, None]
    return jax.nn.dot_product_attention(q_BTNH, k_BSKH, v_BSKH, mask=mask_B1TS, implementation=implementation)


def _scores(q_GRH: Float[Array, "G R H"], k_GSH: Float[Array, "G S H"], visible: KeyRange) -> Float[Array, "G R S"]:
    """Masked scores of scaled queries, fp32."""
    scores_GRS = jnp.einsum("GRH,GSH->GRS", q_GRH, k_GSH, preferred_element_type=jnp.float32)
    (g, r, s), (b, t) = scores_GRS.shape, visible.start.shape
    by_position = scores_GRS.reshape(b, g // b, t, r // t, s)
    masked = jnp.where(visible.mask(s)[:, None, :, None], by_position, jnp.finfo(jnp.float32).min)
    return masked.reshape(g, r, s)


def _flash_rows(visible: KeyRange, q_GRH: Float[Array, "G R H"]) -> flash_attention.RowRanges:
    """Key range of every query row."""
    (g, r, _), (b, t) = q_GRH.shape, visible.start.shape
    start, end = (jnp.broadcast_to(x[:, None, :, None], (b, g // b, t, r // t)).reshape(g, r) for x in visible)
    return flash_attention.RowRanges(start, end)


def _merge(x_BKSH: Float[Array, "B K S H"]) -> Float[Array, "G S H"]:
    """Batch rows and key heads on one axis."""
    return x_BKSH.reshape(-1, *x_BKSH.shape[2:])


def _scaled_rows(q_BTNH: Float[Array, "B T N H"], n_kv: int) -> Float[Array, "G R H"]:
    return _by_key_head(q_BTNH * q_BTNH.shape[-1] ** -0.5, n_kv)


def _by_key_head(x_BTNH: Float[Array, "B T N H"], n_kv: int) -> Float[Array, "G R H"]:
    """The query rows that share a key head, on one axis."""
    b, t, n, h = x_BTNH.shape
    return x_BTNH.reshape(b, t, n_kv, n // n_kv, h).swapaxes(1, 2).reshape(b * n_kv, -1, h)


def _by_position(x_GRH: Float[Array, "G R H"], n_kv: int, n_heads: int) -> Float[Array, "B T N H"]:
    """The inverse of `_by_key_head`."""
    g, r, h = x_GRH.shape
    return x_GRH.reshape(g // n_kv, n_kv, -1, n_heads // n_kv, h).swapaxes(1, 2).reshape(g // n_kv, -1, n_heads, h)


# --- Cache ----------------------------------------------------------------------------------------


class KeyValue(NamedTuple):
    """Keys (already rotated) and values of one layer: 2 x K x H numbers per token.

    Rows and heads share an axis, because XLA:CPU then writes a step's slot in place and attends without a copy.
    """

    k: Float[Array, "G S H"]
    v: Float[Array, "G S H"]

    @classmethod
    def of(cls, k_BSKH: Float[Array, "B S K H"], v_BSKH: Float[Array, "B S K H"]) -> "KeyValue":
        """Lay out the projections of a block."""
        return cls(_merge(k_BSKH.swapaxes(1, 2)), _merge(v_BSKH.swapaxes(1, 2)))

    def by_row(self, n_rows: int) -> tuple[Float[Array, "B K S H"], Float[Array, "B K S H"]]:
        """Keys and values with an axis for the rows and one for the heads, as `attend` takes them."""
        return self.k.reshape(n_rows, -1, *self.k.shape[1:]), self.v.reshape(n_rows, -1, *self.v.shape[1:])

    def write(self, new: "KeyValue", slot: Int[Array, ""] | int) -> "KeyValue":
        """Overwrite the positions from `slot` on with `new`."""
        return KeyValue(*(lax.dynamic_update_slice_in_dim(a, b, slot, 1) for a, b in zip(self, new, strict=True)))

    def grown(self, n_positions: int) -> "KeyValue":
        """Append room for `n_positions` more."""
        return KeyValue(*(jnp.pad(x, ((0, 0), (0, n_positions), (0, 0))) for x in self))
