"""Norms, rotary embeddings and matrix products, each against a formula in NumPy."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from upalm.model.config import ModelConfig
from upalm.model.layers import (
    TransposedWeight,
    matmul,
    normalise,
    normalise_heads,
    rotary,
    rotary_frequencies,
    rotate,
    unit_scale,
)

CONFIG = ModelConfig(d_model=32, n_heads=4, n_kv_heads=2, d_head=8, d_ff=64)


def random(*shape: int) -> jnp.ndarray:
    return jnp.asarray(np.random.default_rng(len(shape)).normal(size=shape), jnp.float32)


# --- Norms ---


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_rms_norm(offset):
    x, scale = random(2, 3, 32), random(32)
    rms = np.sqrt((np.asarray(x) ** 2).mean(-1, keepdims=True) + 1e-6)
    found = normalise(x, scale, replace(CONFIG, norm_offset=offset))
    np.testing.assert_allclose(found, np.asarray(x) / rms * (offset + np.asarray(scale)), rtol=1e-5)


def test_layer_norm_centres():
    found = normalise(random(2, 3, 32) + 5, None, replace(CONFIG, norm="layernorm"))
    assert abs(float(found.mean(-1).max())) < 1e-5


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_unit_scale_changes_nothing(offset):
    config, x = replace(CONFIG, norm_offset=offset), random(2, 3, 32)
    np.testing.assert_array_equal(normalise(x, unit_scale(config, 32), config), normalise(x, None, config))


@pytest.mark.parametrize(
    ("kind", "scale_shape", "axes"), [("norm", (4, 8), -1), ("shared", (1, 8), -1), ("flat", (4, 8), (-2, -1))]
)
def test_query_key_norms(kind, scale_shape, axes):
    x, scale = random(2, 3, 4, 8), random(*scale_shape)
    rms = np.sqrt((np.asarray(x) ** 2).mean(axes, keepdims=True) + 1e-6)
    found = normalise_heads(x, scale, replace(CONFIG, qk_norm=kind, norm_offset=0.0))
    np.testing.assert_allclose(found, np.asarray(x) / rms * np.asarray(scale), rtol=1e-5)


def test_l2_norm_gives_unit_length():
    found = normalise_heads(random(2, 3, 4, 8), jnp.zeros((4, 8)), replace(CONFIG, qk_norm="l2"))
    np.testing.assert_allclose(jnp.linalg.norm(found, axis=-1), 1, rtol=1e-5)


# --- Rotary embeddings ---


def test_rotation_is_by_the_positions_difference():
    q, k = random(1, 1, 1, 8), random(1, 1, 1, 8) + 1

    def score(i: int, j: int) -> float:
        tables = [rotary(jnp.full((1, 1), at), CONFIG) for at in (i, j)]
        return float(jnp.sum(rotate(q, tables[0]) * rotate(k, tables[1], is_key=True)))

    assert score(3, 1) == pytest.approx(score(40, 38), rel=1e-4)
    assert score(3, 1) != pytest.approx(score(3, 2), rel=1e-2)


def test_llama3_scaling_slows_long_wavelengths_alone():
    plain = rotary_frequencies(replace(CONFIG, d_head=64, rope_theta=500_000.0))
    scaled = replace(CONFIG, d_head=64, rope_theta=500_000.0, rope_factor=8.0, rope_original_seq_len=1024)
    ratio = np.asarray(plain / rotary_frequencies(scaled))
    wavelengths = 2 * np.pi / np.asarray(plain)
    np.testing.assert_allclose(ratio[wavelengths < 1024 / 4], 1, rtol=1e-6)
    np.testing.assert_allclose(ratio[wavelengths > 1024], 8, rtol=1e-6)
    between = ratio[(wavelengths > 1024 / 4) & (wavelengths < 1024)]
    assert len(between) and ((between > 1) & (between < 8)).all() and (np.diff(ratio) >= -1e-6).all()


# --- Matrix products ---


@pytest.mark.parametrize("n_rows", [3, 100])
def test_products_of_transposed_weights(n_rows):
    x, w = random(n_rows, 1, 4, 8), random(4, 8, 5, 2)
    expected = np.einsum("btnh,nhij->btij", np.asarray(x), np.asarray(w))
    for weight in (w, TransposedWeight.of(w, n_in=2)):
        np.testing.assert_allclose(matmul(x, weight, n_in=2), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("platform", "n_barriers"), [("cpu", 2), ("cuda", 0), ("tpu", 0)])
def test_barriers_of_few_rows_are_for_cpus(platform, n_barriers):
    """Other platforms fuse what comes after a product with it."""
    product = jax.jit(lambda x, weight: weight.product(x)).trace(random(3, 8), TransposedWeight.of(random(8, 5)))
    assert product.lower(lowering_platforms=(platform,)).as_text().count("optimization_barrier") == n_barriers
