"""TPU kernels: values and gradients, interpreted on the CPU, against `attend` over any packing; programs for TPUs."""

import importlib.util
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.environment import USERS_FLAGS

from upalm.model import flash_attention
from upalm.model.attention import KeyRange, attend, key_range
from upalm.model.flash_attention import RowRanges
from upalm.planning import topology
from upalm.planning.search import WITHOUT_TPU

T, H = 256, 128


def packing(kind: str, rng, n: int = T) -> KeyRange:
    """Key ranges of two rows."""
    segment_ids, prefix = np.zeros((2, n), np.int16), np.zeros((2, n), bool)
    if kind == "random":
        for row in range(2):
            edges = np.sort(rng.choice(np.arange(1, n), rng.integers(0, 6), replace=False))
            segment_ids[row] = np.searchsorted(edges, np.arange(n), side="right") + 1
            segment_ids[row, n - rng.integers(0, 60) :] = 0
            for segment in np.unique(segment_ids[row]):
                here = np.flatnonzero(segment_ids[row] == segment)
                prefix[row, here[: rng.integers(0, len(here) + 1)]] = segment > 0
    elif kind == "one causal segment":
        segment_ids[:] = 1
    elif kind == "one prefix":
        segment_ids[:], prefix[:] = 1, True
    return key_range(jnp.asarray(segment_ids), jnp.asarray(prefix))


def ranges_of(visible: KeyRange, n_heads: int) -> RowRanges:
    start, end = (jnp.repeat(x, n_heads, 1) for x in visible)
    return RowRanges(start, end)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["random", "random again", "one causal segment", "one prefix", "all padding"])
def test_values_and_gradients(kind, dtype):
    check_values_and_gradients(kind, dtype, T)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["random", "one prefix"])
def test_rows_longer_than_a_call(kind, dtype, monkeypatch):
    """Of 640 keys a call takes 512 in the forward pass, and 256 in the backward pass."""
    monkeypatch.setattr(flash_attention, "_VMEM", 256 * H * (8 * jnp.dtype(dtype).itemsize + 8))
    check_values_and_gradients(kind, dtype, 5 * 128)


def check_values_and_gradients(kind: str, dtype: str, n: int) -> None:
    n_heads, rng = 3, np.random.default_rng(len(kind))
    visible = packing("random" if kind.startswith("random") else kind, rng, n)
    q, d_out = (jnp.asarray(rng.normal(size=(2, n, n_heads, H)), dtype) for _ in range(2))
    k, v = (jnp.asarray(rng.normal(size=(2, n, H)), dtype) for _ in range(2))
    expected, gradient = jax.vjp(lambda q, k, v: attend(q, k[:, None], v[:, None], visible), q, k, v)

    rows, scaled, d_rows = ranges_of(visible, n_heads), (q * H**-0.5).reshape(2, -1, H), d_out.reshape(2, -1, H)
    out, log_total = flash_attention.forward(scaled, k, v, rows, interpret=True)
    d_q, d_k, d_v = flash_attention.backward(scaled, k, v, rows, out, log_total, d_rows, interpret=True)

    found = out.reshape(q.shape), d_q.reshape(q.shape) * H**-0.5, d_k, d_v
    tolerance = 1e-5 if dtype == "float32" else 2**-6  # of the largest: two units of bf16's last place
    for a, b in zip(found, (expected, *gradient(d_out)), strict=True):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max())


def test_blocks_outside_every_range_are_not_visited():
    """Blocks outside are not even masked: NaN in them would spread."""
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(1, 4 * 512, H)), jnp.float32) for _ in range(3))
    start = jnp.repeat(jnp.asarray([[0, 512, 512, 1536]]), 512, 1)
    end = jnp.repeat(jnp.asarray([[512, 700, 1024, 2048]]), 512, 1)
    visible = RowRanges(start, end)
    clean = flash_attention.forward(q, k, v, visible, interpret=True)
    k, v = (x.at[:, 1024:1536].set(jnp.nan) for x in (k, v))
    out, log_total = flash_attention.forward(q, k, v, visible, interpret=True)
    np.testing.assert_array_equal(out, clean[0])
    d_q, d_k, d_v = flash_attention.backward(q, k, v, visible, out, log_total, q, interpret=True)
    assert all(np.isfinite(x).all() for x in (log_total, d_q, d_k, d_v))
    assert float(jnp.abs(d_k[:, 1024:1536]).max()) == 0


def test_shapes_without_whole_blocks_are_refused():
    q, ranges = jnp.zeros((1, 100, H)), jnp.zeros((1, 100), jnp.int32)
    with pytest.raises(ValueError, match="100 query rows"):
        flash_attention.forward(q, q, q, RowRanges(ranges, ranges), interpret=True)


def test_many_heads(monkeypatch):
    """The blocks that rows see lie along one axis."""
    monkeypatch.setattr(flash_attention, "_SMEM", 0)
    check_values_and_gradients("random", "float32", T)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((2048 * 16, 2048, 256), True),
        ((1024 * 6, 1024, 128), True),
        ((16, 2048, 256), False),  # a decoding step
        ((2048, 2048, 64), False),
        ((32768, 32768, 256), True),
    ],
)
def test_shapes_that_the_kernels_take(shape, expected):
    assert flash_attention.fits(*shape) == expected


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason=f"no libtpu: {topology.INSTALL}")
@pytest.mark.parametrize("slice_name", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_kernels_compile_for_tpus(slice_name, monkeypatch):
    for name, value in (WITHOUT_TPU | {"XLA_FLAGS": USERS_FLAGS}).items():
        monkeypatch.setitem(os.environ, name, value)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        refusals = pool.submit(compile_kernels, slice_name).result()
    assert not refusals


def compile_kernels(slice_name: str) -> dict[str, str]:
    """Compile both kernels for a described slice. Returns what the compiler says of the shapes that it refuses."""
    sharding = jax.sharding.SingleDeviceSharding(topology.target_of(slice_name).devices[0])
    refusals = {}
    for g, s, h, dtype in ROWS:
        r = s if g > 2 else 2 * s
        q, k, row, edge = (
            jax.ShapeDtypeStruct(shape, d, sharding=sharding)
            for shape, d in (((g, r, h), dtype), ((g, s, h), dtype), ((g, r), jnp.float32), ((g, r), jnp.int32))
        )
        rows = RowRanges(edge, edge)
        for kernel, arguments in (("forward", (q, k, k, rows)), ("backward", (q, k, k, rows, q, row, q))):
            try:
                jax.jit(getattr(flash_attention, kernel)).lower(*arguments).compile()
            except jax.errors.JaxRuntimeError as e:
                refusals[f"{kernel} {g} x {s} x {h} {dtype}"] = str(e)[:300]
    return refusals


ROWS = [
    (2, 2048, 256, "bfloat16"),  # the recipes' longest
    (2, 8192, 128, "bfloat16"),
    (2, 4096, 256, "bfloat16"),
    (2, 16384, 128, "bfloat16"),
    (2, 4096, 128, "float32"),
    (1024, 256, 128, "bfloat16"),  # 32 rows of 32 key heads
]
"""Rows x key heads, keys, width and type that TPUs train on."""
