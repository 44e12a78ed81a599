"""GPU kernels: values and gradients, interpreted on the CPU, against the definition; blocks that they visit."""

from functools import cache
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from upalm.model import flash_attention_gpu
from upalm.model.attention import KeyRange, attention_reference, key_range
from upalm.model.flash_attention_gpu import Blocks, Given, keys_seen, queries_that_see

T = 256
ROWS = ("causal", "prefix", "packed", "padding alone")


@cache
def visible() -> KeyRange:
    """Key ranges of one row of each of ROWS."""
    ids, prefix = np.ones((len(ROWS), T), np.int32), np.zeros((len(ROWS), T), bool)
    prefix[1, :100] = True
    ids[2] = np.repeat([1, 2, 3, 0], [40, 81, 102, 33])
    prefix[2, :20] = prefix[2, 40:110] = True
    ids[3] = 0
    return key_range(jnp.asarray(ids), jnp.asarray(prefix))


def random_arrays(n: int, k: int, h: int) -> list[jax.Array]:
    """Queries, keys and values, and a gradient of the output."""
    rng, b = np.random.default_rng(0), len(ROWS)
    shapes = ((b, T, n, h), (b, k, T, h), (b, k, T, h), (b, T, n, h))
    return [jnp.asarray(rng.normal(size=shape), "bfloat16") for shape in shapes]


@jax.jit
def ours(q, k, v, d_out, ranges: KeyRange) -> tuple[jax.Array, ...]:
    out, log_total = flash_attention_gpu.forward(q, k, v, *ranges, interpret=True)
    results = out, log_total, d_out
    return out, *flash_attention_gpu.backward(q, k, v, *ranges, *results, interpret=True), log_total


@jax.jit
def definition(q, k, v, d_out, ranges: KeyRange) -> tuple[jax.Array, ...]:
    q, k, v, d_out = (x.astype(jnp.float32) for x in (q, k, v, d_out))
    out, gradient = jax.vjp(lambda *qkv: attention_reference(*qkv, ranges), q, k, v)
    scores = (
        jnp.einsum("BTKGH,BKSH->BTKGS", q.reshape(*q.shape[:2], k.shape[1], -1, q.shape[3]), k) * q.shape[3] ** -0.5
    )
    masked = jnp.where(ranges.mask(k.shape[2])[:, :, None, None], scores, -jnp.inf)
    return out, *gradient(d_out), jax.nn.logsumexp(masked, -1).reshape(q.shape[:3])


@pytest.mark.parametrize(("n", "k", "h"), [(2, 1, 64), (3, 1, 64), (4, 2, 64), (2, 2, 64), (2, 1, 128), (2, 1, 256)])
def test_values_and_gradients(n, k, h):
    """The kernels have those of the definition: multi-query, grouped and separate heads, each kind of row."""
    arrays = random_arrays(n, k, h)
    for a, b in zip(ours(*arrays, visible()), definition(*arrays, visible()), strict=True):
        for i, row in enumerate(ROWS):
            x, y = np.asarray(a[i], np.float32), np.asarray(b[i])
            np.testing.assert_allclose(x, y, atol=2**-6 * np.abs(y).max(), err_msg=row)


def test_positions_of_a_row_can_be_on_several_devices():
    """A device with some of the queries and all keys finds its part of the result."""
    q, k, v, d_out = random_arrays(2, 1, 64)
    whole = ours(q, k, v, d_out, visible())
    parts = [
        ours(q[:, at], k, v, d_out[:, at], KeyRange(*(x[:, at] for x in visible())))
        for at in (slice(0, 128), slice(128, T))
    ]
    for i in (0, 1, 4):  # output, gradient of queries and log-sum-exp
        np.testing.assert_array_equal(jnp.concatenate([part[i] for part in parts], 1), whole[i])
    for i in (2, 3):  # sums over queries
        a, b = (np.asarray(x, np.float32) for x in (parts[0][i] + parts[1][i], whole[i]))
        np.testing.assert_allclose(a, b, atol=2**-6 * np.abs(b).max())


def test_blocks_outside_every_range_are_not_read():
    """Blocks of keys outside every range are not even masked: NaN in them would spread."""
    q, k, v, d_out = random_arrays(2, 1, 64)
    start, end = (
        jnp.repeat(jnp.asarray([edges] * len(ROWS)), 64, 1) for edges in ([0, 0, 128, 192], [64, 9, 180, 256])
    )
    clean = ours(q, k, v, d_out, KeyRange(start, end))
    k, v = (x.at[:, :, 64:128].set(jnp.nan) for x in (k, v))
    found = ours(q, k, v, d_out, KeyRange(start, end))
    for a, b in zip(found, clean, strict=True):
        np.testing.assert_array_equal(a, b)
    assert all(not np.asarray(x[:, :, 64:128]).any() for x in found[2:4])


@pytest.mark.parametrize("blocks", [Blocks(128, 64, 4, 2), Blocks(64, 64, 4, 2), Blocks(64, 128, 4, 2)])
@pytest.mark.parametrize("kind", ["packed", "any"])
def test_visited_blocks_are_those_that_are_seen(kind, blocks):
    """Every block that a query sees is visited, and only those that all queries see whole are not masked."""
    ranges = visible()
    if kind == "any":
        start = np.random.default_rng(0).integers(0, T, (2, T))
        ranges = KeyRange(jnp.asarray(start), jnp.asarray(np.minimum(start + 1 + np.arange(T) // 2, T)))
    mask = np.asarray(ranges.mask(T)).reshape(-1, T // blocks.queries, blocks.queries, T // blocks.keys, blocks.keys)
    seen_BIJ, whole_BIJ = mask.any((2, 4)), mask.all((2, 4))

    for bounds, seen, whole in (
        (keys_seen(*ranges, blocks), seen_BIJ, whole_BIJ),
        (queries_that_see(*ranges, T, blocks), seen_BIJ.swapaxes(1, 2), whole_BIJ.swapaxes(1, 2)),
    ):
        first, last, whole_first, whole_last = np.moveaxis(np.asarray(bounds)[..., None], 2, 0)
        at = np.arange(seen.shape[2])
        visited, unmasked = (first <= at) & (at < last), (whole_first <= at) & (at < whole_last)
        assert (visited >= seen).all() and (unmasked <= whole).all()
        assert ((first <= whole_first) & (whole_first <= whole_last) & (whole_last <= last)).all()
        if kind == "packed":
            np.testing.assert_array_equal(unmasked, whole)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((2048, 2048, 64, "bfloat16"), True),
        ((256, 8192, 128, "bfloat16"), True),
        ((2048, 2048, 64, "float32"), False),
        ((2048, 2048, 96, "bfloat16"), False),
        ((2048, 2048, 256, "bfloat16"), True),
        ((1, 2048, 64, "bfloat16"), False),  # a decoding step
        ((128, 96, 64, "bfloat16"), False),
    ],
)
def test_shapes_that_the_kernels_take(shape, expected):
    *sizes, dtype = shape
    assert flash_attention_gpu.fits(*sizes, jnp.dtype(dtype)) == expected


def test_later_versions_of_jax_may_lack_the_backend(monkeypatch):
    shape = 2048, 2048, 64, jnp.dtype("bfloat16")
    assert flash_attention_gpu.fits(*shape)
    monkeypatch.setattr(flash_attention_gpu, "plgpu", SimpleNamespace(CompilerParams=None))
    assert not flash_attention_gpu.fits(*shape)


@pytest.mark.parametrize(("t", "s", "h"), [(200, 256, 64), (256, 200, 64), (256, 256, 96)])
def test_shapes_that_no_block_divides_are_refused(t, s, h):
    q, k, v = (jnp.zeros(shape, "bfloat16") for shape in ((1, t, 2, h), (1, 1, s, h), (1, 1, s, h)))
    ends = jnp.zeros((1, t), "int32"), jnp.full((1, t), s)
    with pytest.raises(ValueError, match="expected .* with T in whole 128, S in whole 64"):
        flash_attention_gpu.forward(q, k, v, *ends, interpret=True)
    lengths = jnp.zeros((1, 2, t))
    for kernel in (flash_attention_gpu.d_queries, flash_attention_gpu.d_keys):
        with pytest.raises(ValueError, match="expected .* H one of .64, 128, 256."):
            kernel(Given(*ends, q, q, lengths, lengths, k, v), Blocks(128, 64, 4, 2), True)
