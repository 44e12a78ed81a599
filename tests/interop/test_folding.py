"""LayerNorm folded into RMS norm."""

import jax.numpy as jnp
import numpy as np
import pytest
from support.cohere import logits, save, small_cohere
from support.open_checkpoints import small_model
from support.rows import packed_batch

from upalm.checkpoints.folder import load_model
from upalm.interop.hf_import import import_hf
from upalm.model.attention import key_range


def test_folding_layernorm_keeps_the_function(tmp_path, source_text):
    model, batch = small_cohere(num_key_value_heads=2, use_qk_norm=True), packed_batch()
    result = import_hf(save(model, tmp_path / "hf", source_text), tmp_path / "rms", norm="rms")
    assert (result.config.norm, result.config.tied_head) == ("rms", False)
    mask = np.asarray(key_range(jnp.asarray(batch.segment_ids), jnp.asarray(batch.prefix_mask)).mask(64))
    expected = logits(model, batch.input_tokens, mask, batch.positions).detach().numpy()
    np.testing.assert_allclose(load_model(result.folder).model(batch), expected, atol=2e-5)


def test_models_without_layernorm_are_not_folded(tmp_path, source_text):
    with pytest.raises(ValueError, match="LlamaForCausalLM: only CohereForCausalLM has a LayerNorm"):
        import_hf(save(small_model("SmolLM2"), tmp_path / "hf", source_text), tmp_path / "rms", norm="rms")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
