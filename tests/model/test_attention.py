"""Key ranges against the mask's definition; attention and its gradient against the reference and JAX's own."""

import re
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType
from support.rows import packed_batch

from upalm.data.config import DataConfig
from upalm.distributed.sharding import AXES, make_mesh
from upalm.inference.decoding import DecodingModel, prefill, prompt_positions, round_up
from upalm.model import attention
from upalm.model.attention import (
    KeyRange,
    KeyValue,
    attend,
    attention_reference,
    choose_gpu_kernel,
    key_range,
    library_attention,
    library_fits,
    max_library_head,
)
from upalm.model.config import PALM
from upalm.model.palm import empty_model
from upalm.planning.lowering import train_arguments
from upalm.training.config import Scratch, TrainConfig
from upalm.training.step import train_step


def test_key_range_is_the_prefix_mask_with_packing():
    """A query sees keys of its segment that come before it, or that are in the prefix with it."""
    batch = packed_batch()
    visible = key_range(jnp.asarray(batch.segment_ids), jnp.asarray(batch.prefix_mask)).mask(64)
    ids, prefix = batch.segment_ids, batch.prefix_mask
    causal = np.tril(np.ones((64, 64), bool))[None]
    both = prefix[:, :, None] & prefix[:, None, :]
    same = ids[:, :, None] == ids[:, None, :]
    assert np.array_equal(np.asarray(visible), same & (causal | both))
    assert (ids == 0).any() and prefix.any()


LIBRARY = partial(library_attention, implementation="xla")


def key_ranges(kind: str) -> KeyRange:
    """Key ranges of three rows of 64 tokens."""
    if kind == "any":
        rng = np.random.default_rng(0)
        start = rng.integers(0, 60, (3, 64))
        return KeyRange(jnp.asarray(start), jnp.asarray(start + rng.integers(1, 5, (3, 64))))
    if kind == "packed":
        batch = packed_batch()
        return key_range(jnp.asarray(batch.segment_ids), jnp.asarray(batch.prefix_mask))
    ids = np.full((3, 64), 0 if kind == "all padding" else 1, np.int32)
    return key_range(jnp.asarray(ids), jnp.full((3, 64), kind == "one prefix"))


def random_inputs(n_kv_heads: int, dtype: str = "float32") -> list[jax.Array]:
    """Queries, keys and values of four heads, and a gradient of their output."""
    rng = np.random.default_rng(n_kv_heads)
    shapes = ((3, 64, 4, 8), (3, n_kv_heads, 64, 8), (3, n_kv_heads, 64, 8), (3, 64, 4, 8))
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


@partial(jax.jit, static_argnums=0)
def value_and_gradients(function, qkv, visible: KeyRange, d_out: jax.Array):
    value, gradients = jax.vjp(lambda *qkv: function(*qkv, visible), *qkv)
    return value, *gradients(d_out)


PACKINGS = ("packed", "all padding", "one causal segment", "one prefix")


@pytest.mark.parametrize("kind", ["any", *PACKINGS])
@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
@pytest.mark.parametrize(
    ("expected", "dtype", "tolerance"),
    [(attention_reference, "float32", 1e-6), (LIBRARY, "float32", 1e-6), (LIBRARY, "bfloat16", 2**-6)],
    ids=["reference", "library", "library in bf16"],
)
def test_attention_and_its_gradient(expected, dtype, tolerance, n_kv_heads, kind):
    """To a tolerance relative to the largest number. `LIBRARY` is what NVIDIA GPUs run, by its other implementation."""
    *qkv, d_out = random_inputs(n_kv_heads, dtype)
    found, true = (value_and_gradients(f, qkv, key_ranges(kind), d_out) for f in (attend, expected))
    for a, b in zip(found, true, strict=True):
        assert a.dtype == b.dtype == dtype
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max())


@pytest.mark.parametrize("kind", PACKINGS)
def test_every_query_sees_itself(kind):
    start, end = key_ranges(kind)
    index = np.arange(64)[None]
    assert (start <= index).all() and (index < end).all()


def test_backward_pass_keeps_no_scores():
    """Nothing of T x S is among what the forward pass saves."""
    *qkv, _ = random_inputs(2)
    visible = key_ranges("packed")
    _, gradient = jax.vjp(lambda *qkv: attend(*qkv, visible), *qkv)
    assert max(x.size for x in jax.tree.leaves(gradient) if hasattr(x, "size")) <= 3 * 64 * 4 * 8


# --- NVIDIA GPUs ----------------------------------------------------------------------------------


@pytest.fixture
def hopper(monkeypatch):
    """Programs for an H100 can be lowered without one. JAX asks the GPU of this machine what it can do."""
    fused = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo", reason="this JAX has its cuDNN elsewhere")
    answers = {
        "check_cudnn_version": lambda: 91100,
        "check_compute_capability": lambda version: float(version) <= 9,
        "is_cuda_compute_capability_equal": lambda version: version == "9.0",
    }
    if not all(hasattr(fused, name) for name in answers):
        pytest.skip("this JAX asks about cuDNN elsewhere")
    for name, answer in answers.items():
        monkeypatch.setattr(fused, name, answer)
    with suppress(ImportError):
        from jax._src.pallas.triton import gpu_info  # since JAX 0.11

        h100 = gpu_info.get_gpu_info_from_version(gpu_info.GpuVersion.H100)
        monkeypatch.setattr(gpu_info, "get_gpu_info", lambda: h100)
    monkeypatch.setattr(attention, "gpu_generation", lambda: 9)
    return fused


@pytest.fixture
def cudnn(hopper, monkeypatch):
    """A stand-in for a Hopper GPU whose only kernel of attention is cuDNN's."""
    monkeypatch.setattr(attention, "GPU_KERNELS", ("cuDNN",))
    return hopper


def attention_step(dtype: str, n_kv_heads: int = 2, d_head: int = 64) -> str:
    """A program of attention, forward and backward: 2 rows of 512, 8 query heads."""
    q, k = ((2, 512, 8, d_head), (2, n_kv_heads, 512, d_head))
    q, k, index = (jax.ShapeDtypeStruct(*x) for x in ((q, dtype), (k, dtype), ((2, 512), "int32")))

    def loss(q, k, v, segment_ids, prefix):
        return jnp.sum(attend(q, k, v, key_range(segment_ids, prefix > 0)).astype("float32"))

    step = jax.jit(jax.grad(loss, (0, 1, 2))).trace(q, k, k, index, index)
    return step.lower(lowering_platforms=("cuda",)).as_text()


def squares(text: str) -> set[str]:
    """Leading sizes of the arrays of 512 x 512 in a program."""
    return set(re.findall(r"tensor<([\dx]*)512x512x\w+>", text))


OURS = "@__gpu$xla.gpu.triton("
FORWARD, BACKWARD = "@__cudnn$fmhaScaleBiasSoftmax(", "@__cudnn$fmhaScaleBiasSoftmaxBackward("


@pytest.mark.parametrize(("n_kv_heads", "d_head"), [(1, 256), (2, 64), (8, 128)])
@pytest.mark.parametrize("has_mesh", [False, True])
def test_cudnn_fuses_attention_without_scores(cudnn, n_kv_heads, d_head, has_mesh):
    """The program in bf16 has one mask per row, and no array of T x S per head."""
    with jax.set_mesh(make_mesh(1, 1, devices=jax.devices()[:1])) if has_mesh else nullcontext():
        text = attention_step("bfloat16", n_kv_heads, d_head)
    assert FORWARD in text and BACKWARD in text
    assert squares(text) == {"2x", "2x1x"}


@pytest.mark.parametrize(("n_kv_heads", "d_head"), [(1, 64), (2, 64), (8, 128)])
@pytest.mark.parametrize("n_devices", [0, 1, 4])
def test_gpus_run_our_kernels_without_a_mask(hopper, n_kv_heads, d_head, n_devices):
    """A program has three kernels: of the output, of the gradient of queries, and of those of keys and values.

    Four devices split the heads, or the positions where two key heads have too few; 0 is without a mesh.
    """
    mesh = AbstractMesh((1, 1, n_devices), AXES, axis_types=(AxisType.Auto,) * 3)
    with jax.sharding.use_abstract_mesh(mesh) if n_devices else nullcontext():
        text = attention_step("bfloat16", n_kv_heads, d_head)
    assert text.count(OURS) == 3 and "cudnn" not in text
    assert not squares(text)


@pytest.mark.parametrize(
    ("generation", "d_head", "kernel"), [(9, 64, "pallas"), (9, 96, "cuDNN"), (8, 64, "cuDNN"), (9, 60, None)]
)
def test_gpus_take_the_first_kernel_that_fits(hopper, monkeypatch, generation, d_head, kernel):
    monkeypatch.setattr(attention, "gpu_generation", lambda: generation)
    assert choose_gpu_kernel(512, 512, d_head, jnp.dtype("bfloat16")) == kernel
    monkeypatch.setattr(attention, "GPU_KERNELS", ())
    assert choose_gpu_kernel(512, 512, d_head, jnp.dtype("bfloat16")) is None


@pytest.mark.parametrize("kernel", ["pallas", "cuDNN"])
def test_gpus_train_without_scores(hopper, monkeypatch, kernel):
    """The whole step, with two layers in a loop and matrix products saved."""
    jax.clear_caches()  # the kernel is chosen while the step is traced
    monkeypatch.setattr(attention, "GPU_KERNELS", (kernel,))
    model = replace(PALM["tiny"], n_layers=2, compute_dtype="bfloat16")
    config = TrainConfig(Path("unnamed"), Scratch(model), data=DataConfig("stdlib", seq_len=512, batch_size=2))
    optimizer = config.optimizer.build(1)
    state, batch = train_arguments(config, model, None, 2)
    step = train_step.trace(state, batch, optimizer=optimizer, n_denoisers=1)
    text = step.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count(OURS) == 3 if kernel == "pallas" else FORWARD in text and BACKWARD in text
    assert squares(text) <= ({"2x"} if kernel == "pallas" else {"2x", "2x1x"})  # activations are 512 wide


@pytest.mark.parametrize(
    ("generation", "d_head", "kernel"),
    [(9, 64, "pallas"), (9, 128, "pallas"), (9, 256, "pallas"), (9, 96, "cuDNN"), (8, 64, "cuDNN"), (0, 64, None)],
)
def test_prompts_fit_the_kernel_with_little_padding(hopper, monkeypatch, generation, d_head, kernel):
    """With BOS, from 385 tokens on, and shorter ones near whole blocks; others have BOS on top of the bucket."""
    monkeypatch.setattr(attention, "gpu_generation", lambda: generation)
    config = replace(PALM["tiny"], compute_dtype="bfloat16", d_head=d_head)
    fitting = []
    for length in range(700):
        n, bucket = prompt_positions([(), [3] * length], round_up(length), config), 1 + round_up(length)
        assert length < n <= 1.25 * bucket
        if choose_gpu_kernel(n, n, d_head, jnp.dtype("bfloat16")) == kernel is not None:
            fitting.append(length)
        else:
            assert n == bucket
    short = [*range(97, 128), *range(193, 256), *range(289, 384)]
    assert fitting == ([*short, *range(385, 700)] if kernel else [])


@pytest.mark.parametrize("prompt_length", [450, 511])
def test_gpus_prefill_by_our_kernel(hopper, prompt_length):
    """The last layer, whose last position alone is of use, attends plainly."""
    jax.clear_caches()  # the kernel is chosen while the program is traced
    config = replace(PALM["tiny"], n_layers=2, compute_dtype="bfloat16")
    n_positions = prompt_positions([[3] * prompt_length], round_up(prompt_length), config)
    model = jax.eval_shape(DecodingModel.of, empty_model(config))
    rows = (jax.ShapeDtypeStruct((2, n_positions), "int32"), jax.ShapeDtypeStruct((2,), "int32"))
    program = prefill.trace(model, *rows, max_new=32, attention="prefix")
    text = program.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count(OURS) == 1 and squares(text) <= {"2x"}  # activations are 512 wide


@pytest.mark.parametrize(("dtype", "d_head"), [("float32", 64), ("bfloat16", 60), ("bfloat16", 512)])
def test_gpus_attend_plainly_beyond_cudnn(hopper, dtype, d_head):
    text = attention_step(dtype, d_head=d_head)
    assert "cudnn" not in text and "tensor<4x2048x512xf32>" in text


def test_jax_takes_what_fits_cudnn(hopper, monkeypatch):
    """Its checks for training pass on each generation of GPUs."""
    takes = []
    for generation, widest in ((8, 128), (9, 256), (10, 128)):
        monkeypatch.setattr(hopper, "check_compute_capability", lambda v, g=generation: float(v) <= g)
        monkeypatch.setattr(attention, "max_library_head", lambda w=widest: w)
        for t, s, h in product((64, 127, 128), (96, 128, 255, 256), (4, 64, 100, 128, 256, 512)):
            if library_fits(t, s, h, jnp.dtype("bfloat16")):
                q, k = (jax.ShapeDtypeStruct((1, n, 1, h), "bfloat16") for n in (t, s))
                hopper.check_is_flash_attention(q, k, k, 0, 91100, True, True)
                takes.append((generation, t, s, h))
    assert {t for _, t, _, _ in takes} == {64, 128} and {s for _, _, s, _ in takes} == {128, 256}
    assert {(g, h) for g, _, _, h in takes} == {(8, 64), (8, 128), (9, 64), (9, 128), (9, 256), (10, 64), (10, 128)}


@pytest.mark.parametrize(
    ("version", "capability", "widest"),
    [
        ("cuda 12090", "7.5", 0),
        ("cuda 12090", "8.9", 128),
        ("cuda 12090", "9.0", 256),
        ("cuda 12090", "10.3", 128),
        ("rocm 60300", "gfx942", 0),
    ],
)
def test_widest_head_is_the_generations(version, capability, widest, monkeypatch):
    device = SimpleNamespace(compute_capability=capability, client=SimpleNamespace(platform_version=version))
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert max_library_head() == widest
    with jax.default_device(jax.devices("cpu")[0]):  # on which programs run, whatever else there is
        assert max_library_head() == 0


def test_other_platforms_have_no_library_kernel():
    assert jax.devices()[0].platform == "gpu" or max_library_head() == 0


def test_cache_is_written_at_its_slot():
    new = KeyValue.of(jnp.ones((2, 1, 3, 8)), 2 * jnp.ones((2, 1, 3, 8)))
    cache = KeyValue(jnp.zeros((6, 4, 8)), jnp.zeros((6, 4, 8))).grown(2).write(new, 5)
    k, v = (np.asarray(x) for x in cache.by_row(2))
    assert k.shape == (2, 3, 6, 8)
    assert (k[:, :, 5] == 1).all() and (v[:, :, 5] == 2).all() and not k[:, :, :5].any()
