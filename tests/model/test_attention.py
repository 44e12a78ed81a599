"""Key ranges against the mask's definition; attention and its gradient against the reference and JAX's own."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.rows import packed_batch

from upalm.model import attention
from upalm.model.attention import (
    KeyRange,
    KeyValue,
    attend,
    attention_reference,
    key_range,
    library_attention,
)


def test_key_range_is_the_prefix_mask_with_packing():
    """Same segment, and causal or both in the prefix."""
    batch = packed_batch()
    visible = key_range(jnp.asarray(batch.segment_ids), jnp.asarray(batch.prefix_mask)).mask(64)
    ids, prefix = batch.segment_ids, batch.prefix_mask
    causal = np.tril(np.ones((64, 64), bool))[None]
    both = prefix[:, :, None] & prefix[:, None, :]
    same = ids[:, :, None] == ids[:, None, :]
    assert np.array_equal(np.asarray(visible), same & (causal | both))
    assert (ids == 0).any() and prefix.any()


def random_inputs(n_kv_heads: int):
    rng = np.random.default_rng(n_kv_heads)
    shapes = ((2, 12, 4, 8), (2, n_kv_heads, 12, 8), (2, n_kv_heads, 12, 8), (2, 12, 4, 8))
    q, k, v, d_out = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
    start = rng.integers(0, 8, (2, 12))
    return (q, k, v), KeyRange(jnp.asarray(start), jnp.asarray(start + rng.integers(1, 5, (2, 12)))), d_out


def library(visible: KeyRange):
    """JAX's own function, by its XLA path."""
    return partial(library_attention, visible=visible, implementation="xla")


@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
def test_reference_is_the_librarys(n_kv_heads):
    inputs, visible, _ = random_inputs(n_kv_heads)
    np.testing.assert_allclose(attention_reference(*inputs, visible), library(visible)(*inputs), atol=1e-6)


@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("expected", ["reference", "library"])
def test_attention_and_its_gradient(n_kv_heads, expected):
    inputs, visible, d_out = random_inputs(n_kv_heads)
    oracle = library(visible) if expected == "library" else lambda q, k, v: attention_reference(q, k, v, visible)
    values, gradient = jax.vjp(lambda *qkv: attend(*qkv, visible), *inputs)
    true_values, true_gradient = jax.vjp(oracle, *inputs)
    np.testing.assert_allclose(values, true_values, atol=1e-5)
    for a, b in zip(gradient(d_out), true_gradient(d_out), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_backward_pass_keeps_no_scores():
    """Nothing of T x S is among what the forward pass saves."""
    inputs, visible, _ = random_inputs(2)
    _, gradient = jax.vjp(lambda *qkv: attend(*qkv, visible), *inputs)
    assert max(x.size for x in jax.tree.leaves(gradient) if hasattr(x, "size")) <= 2 * 12 * 4 * 8


@pytest.fixture
def any_cudnn(monkeypatch):
    """Programs for NVIDIA GPUs can be lowered without one."""
    fused = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo", reason="this JAX has its cuDNN elsewhere")
    if not hasattr(fused, "check_cudnn_version"):
        pytest.skip("this JAX checks cuDNN's version elsewhere")
    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91100)
    monkeypatch.setattr(attention, "max_library_head", lambda: 128)


def lowered_for_cuda(dtype: str) -> str:
    """A step of attention, forward and backward: 2 rows of 256, 8 query heads, 2 key heads."""
    q, k = jax.ShapeDtypeStruct((2, 256, 8, 64), dtype), jax.ShapeDtypeStruct((2, 2, 256, 64), dtype)
    index = jax.ShapeDtypeStruct((2, 256), "int32")

    def loss(q, k, v, start, end):
        return jnp.sum(attend(q, k, v, KeyRange(start, end)).astype("float32"))

    step = jax.jit(jax.grad(loss, (0, 1, 2))).trace(q, k, k, index, index)
    return step.lower(lowering_platforms=("cuda",)).as_text()


def test_gpus_fuse_attention_without_scores(any_cudnn):
    """In bf16 no array of T x S per head is in the program, but one mask per row."""
    text = lowered_for_cuda("bfloat16")
    assert "__cudnn$fmhaScaleBiasSoftmax(" in text and "__cudnn$fmhaScaleBiasSoftmaxBackward(" in text
    squares = re.findall(r"tensor<([\dx]*)256x256x\w+>", text)
    assert set(squares) == {"2x", "2x1x"}, set(squares)


def test_gpus_attend_plainly_in_fp32(any_cudnn):
    assert "cudnn" not in lowered_for_cuda("float32")


def test_other_platforms_have_no_library_kernel():
    assert jax.devices()[0].platform == "gpu" or attention.max_library_head() == 0


def test_cache_is_written_at_its_slot():
    new = KeyValue.of(jnp.ones((2, 1, 3, 8)), 2 * jnp.ones((2, 1, 3, 8)))
    cache = KeyValue(jnp.zeros((6, 4, 8)), jnp.zeros((6, 4, 8))).grown(2).write(new, 5)
    k, v = (np.asarray(x) for x in cache.by_row(2))
    assert k.shape == (2, 3, 6, 8)
    assert (k[:, :, 5] == 1).all() and (v[:, :, 5] == 2).all() and not k[:, :, :5].any()
