"""The embedding table: lookup, scale, and its gradient."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from upalm.model import embedding
from upalm.model.config import ModelConfig
from upalm.model.palm import Decoder

CONFIG = ModelConfig(vocab_size=20, d_model=16, n_layers=1, n_heads=2, d_head=8, d_ff=32)


def test_lookup_and_its_gradient_are_by_row():
    table, tokens = jnp.arange(60, dtype=jnp.float32).reshape(20, 3), jnp.asarray([[1, 4], [4, 19]])
    found, gradient = jax.vjp(lambda table: embedding.lookup(table, tokens, "float32"), table)
    np.testing.assert_array_equal(found, np.asarray(table)[np.asarray(tokens)])
    d_table = np.asarray(gradient(jnp.ones_like(found))[0])
    assert d_table.sum(-1).tolist() == [3 * (row in (1, 19)) + 6 * (row == 4) for row in range(20)]


def test_scale_is_of_the_input_embeddings_alone():
    tokens = jnp.asarray([[1, 4]])
    plain, scaled = (Decoder(replace(CONFIG, embed_scale=s), key=jax.random.key(0)) for s in (1.0, 4.0))
    np.testing.assert_array_equal(scaled.embed_tokens(tokens), 4 * plain.embed_tokens(tokens))
    x = jnp.ones((1, 1, 16))
    np.testing.assert_array_equal(scaled.logits(x), plain.logits(x))


def test_scale_is_rounded_to_compute_precision():
    """Gemma's sqrt(d_model) is a bf16 number in a bf16 model."""
    config = replace(CONFIG, embed_scale=2048**0.5, compute_dtype="bfloat16")
    model = Decoder(config, key=jax.random.key(0))
    rows = model.embed[jnp.asarray([[3]])].astype(jnp.bfloat16)
    np.testing.assert_array_equal(model.embed_tokens(jnp.asarray([[3]])), rows * jnp.bfloat16(45.25))
