"""Every architecture of the table against transformers: the same function, and back out as it came in."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.cohere import logits, oracle
from support.open_checkpoints import COMPANIONS, IDS, NAMES, save, small_model, stored_tensors
from support.open_models import FAMILIES
from support.rows import packed_batch

from upalm import ul2r
from upalm.checkpoints.folder import export, load_model
from upalm.data.hf_tokenizer import load_tokenizer
from upalm.inference.config import GenerationConfig
from upalm.inference.decoding import Task, decode
from upalm.inference.grammar import Rules
from upalm.interop import hf_export, hf_import
from upalm.interop.architectures import (
    ARCHITECTURES,
    architecture_for,
    architecture_of,
    longest_row_is,
    model_config,
    settings_of,
)
from upalm.model.attention import key_range
from upalm.model.config import PALM, ModelConfig
from upalm.model.palm import Decoder


@pytest.fixture(scope="module", params=NAMES)
def imported(request, tmp_path_factory, source_text):
    """transformers' model, the folder it was saved to, and the folder of the import."""
    folder = tmp_path_factory.mktemp("family")
    model = small_model(request.param)
    source = save(model, folder / "hf", source_text)
    hf_import.import_hf(source, folder / "ours")
    return model, source, folder / "ours"


def test_logits_of_packed_rows_equal_those_of_transformers(imported):
    model, _, folder = imported
    ours, batch = load_model(folder).model, packed_batch()
    for rows in (batch, batch.causal()):
        mask = np.asarray(key_range(jnp.asarray(rows.segment_ids), jnp.asarray(rows.prefix_mask)).mask(64))
        expected = logits(model, rows.input_tokens, mask, rows.positions).detach().numpy()
        np.testing.assert_allclose(ours(rows), expected, atol=1e-5 * np.abs(expected).max() + 1e-5)


def test_greedy_tokens_equal_those_of_transformers(imported):
    import torch

    model, _, folder = imported
    prompt = np.random.default_rng(2).integers(3, 600, 21)
    ids = torch.tensor([[1, *prompt]])
    expected = model.generate(ids, max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=0)
    symbols = ul2r.Symbols((), {}, eos_id=IDS["vocab_size"] + 1, bos_id=1, never_generated=())  # EOS never comes
    ours = load_model(folder).model
    [[result]] = decode(ours, [Task(prompt, 24)], GenerationConfig(attention="causal"), Rules(symbols))
    assert result.tokens.tolist() == expected[0, 22:].tolist()


def test_checkpoints_go_out_as_they_came_in(imported, tmp_path):
    _, source, folder = imported
    exported = hf_export.export_hf(folder, tmp_path / "back").folder
    assert stored_tensors(exported) == stored_tensors(source)
    for name in ("config.json", "tokenizer.json", *COMPANIONS):
        assert (exported / name).read_bytes() == (source / name).read_bytes(), name
    card = (exported / "README.md").read_text()
    assert (
        "license: apache-2.0" in card and json.loads((source / "config.json").read_text())["architectures"][0] in card
    )
    again = hf_import.import_hf(exported, tmp_path / "again")
    assert again.tokenizer.symbols == load_tokenizer(folder).symbols
    assert load_model(again.folder).model.config == load_model(folder).model.config


@pytest.mark.parametrize("family", ["SmolLM2", "Qwen 2", "Cohere"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sharded_half_precision_files_come_back(family, dtype, tmp_path, source_text):
    source = save(small_model(family), tmp_path / "hf", source_text, dtype, "60KB")
    assert len(list(source.glob("*.safetensors"))) > 1
    folder = hf_import.import_hf(source, tmp_path / "ours").folder
    assert load_model(folder).model.config.compute_dtype == "bfloat16"
    exported = hf_export.export_hf(folder, tmp_path / "back", shard_bytes=60_000)
    assert exported.dtype == dtype and stored_tensors(exported.folder) == stored_tensors(source)


OWN = {family: config for family, (_, _, config) in FAMILIES.items()} | {
    "Qwen 3 with zero-centred norms": replace(FAMILIES["Qwen 3"][2], norm_offset=1.0, final_norm_scale=False),
    "OLMo 2 with zero-centred norms": replace(FAMILIES["OLMo 2"][2], norm_offset=1.0),
    "Gemma with norms around 0": replace(FAMILIES["Gemma"][2], norm_offset=0.0),
    "PaLM with LayerNorm and query-key norm": ModelConfig(
        d_model=48, n_layers=2, n_heads=4, d_head=16, d_ff=80, seq_len=128, norm="layernorm", qk_norm="norm"
    ),
}


@pytest.mark.parametrize("name", OWN)
def test_models_trained_from_scratch_go_out_as_their_options(name, tmp_path, tokenizer):
    transformers = oracle("transformers")
    model = Decoder(replace(OWN[name], vocab_size=tokenizer.vocab_size), key=jax.random.key(0))
    keys = iter(jax.random.split(jax.random.key(1), 20))
    model = jax.tree_util.tree_map_with_path(
        lambda path, x: x + 0.3 * jax.random.normal(next(keys), x.shape) if "norm" in path[-1].name else x, model
    )
    export(tmp_path / "ours", model, tokenizer, {})
    exported = hf_export.export_hf(tmp_path / "ours", tmp_path / "back", dtype="float32")
    opened = transformers.AutoModelForCausalLM.from_pretrained(exported.folder)
    assert type(opened).__name__ == exported.architecture
    batch = packed_batch().causal()
    mask = np.asarray(key_range(jnp.asarray(batch.segment_ids), jnp.asarray(batch.prefix_mask)).mask(64))
    expected = logits(opened, batch.input_tokens, mask, batch.positions).detach().numpy()
    ours = load_model(tmp_path / "ours").model
    np.testing.assert_allclose(ours(batch), expected, atol=1e-5 * np.abs(expected).max() + 1e-5)


def test_options_of_every_row_describe_the_same_model():
    for family, (name, _, config) in FAMILIES.items():
        row = ARCHITECTURES[f"{name}ForCausalLM"]
        assert not row.differing(config), family
        assert model_config(settings_of(config, row, "float32"), "here") == config, family


def test_models_without_an_architecture_name_the_options_that_differ():
    with pytest.raises(ValueError, match="no architecture .* --start.model.norm layernorm to export"):
        architecture_for(PALM["tiny"])
    mixed = replace(FAMILIES["Qwen 2"][2], qk_norm="flat")
    with pytest.raises(ValueError, match="qk_norm flat"):
        architecture_for(mixed)


def test_adding_an_architecture_is_adding_a_row():
    assert all(row.name == name for name, row in ARCHITECTURES.items())
    for name, row in ARCHITECTURES.items():
        assert architecture_of({"architectures": [name]}, "x") is architecture_of({"model_type": row.model_type}, "x")
    assert {"norm", "block"} <= ModelConfig.__dataclass_fields__.keys()


# --- Refusals ---


def settings(family: str = "LlamaForCausalLM", **changes) -> dict:
    config = next(c for name, _, c in FAMILIES.values() if f"{name}ForCausalLM" == family)
    found = settings_of(config, ARCHITECTURES[family], "float32") | changes
    return {key: value for key, value in found.items() if value is not ...}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architectures": ["Phi3ForCausalLM"]},
            "architecture Phi3ForCausalLM: supported are CohereForCausalLM, Llama",
        ),
        ({"architectures": "GPT2LMHeadModel"}, "architecture GPT2LMHeadModel"),
        ({"architectures": None, "model_type": None}, "architecture None"),
        ({"architectures": [["x"]]}, r"architecture \['x'\]"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4}}, "rope_type yarn"),
        ({"rope_parameters": ..., "rope_scaling": {"type": "linear", "factor": 2}}, "rope_type linear"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 4}}, "rope_type linear"),  # wins over rope_parameters
        ({"rope_scaling": "linear"}, "rope_scaling is 'linear', expected an object"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 0}}, "rope_theta 0.0"),
        ({"rope_parameters": [1]}, "rope_parameters is .*expected an object"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "lacks factor"),
        ({"attention_bias": True}, "attention_bias True"),
        ({"mlp_bias": True}, "mlp_bias True"),
        ({"hidden_act": "relu"}, "hidden_act relu"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"num_local_experts": 8}, "num_local_experts 8 .a mixture of experts"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"layer_types": ["chunked_attention"]}, "layer_types"),
        ({"num_hidden_layers": ...}, "config.json lacks num_hidden_layers"),
        ({"hidden_size": "48"}, "hidden_size is '48', expected a whole number"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True"),
        ({"intermediate_size": 80.5}, "intermediate_size is 80.5"),
        ({"num_key_value_heads": 3}, "n_heads 4 is not a multiple of n_kv_heads 3"),
        ({"head_dim": 15}, "d_head is 15, expected an even number"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
        ({"rms_norm_eps": 0}, "norm_eps is 0.0"),
        ({"vocab_size": -1}, "vocab_size is -1"),
        ({"max_position_embeddings": 10**20}, "max_position_embeddings is 1000"),
    ],
)
def test_settings_that_cannot_be_had_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        model_config(settings(**changes), "here")


@pytest.mark.parametrize(
    ("family", "changes", "seq_len"),
    [
        ("MistralForCausalLM", {"sliding_window": 64}, 64),
        ("MistralForCausalLM", {"sliding_window": ...}, 128),
        ("Qwen2ForCausalLM", {"use_sliding_window": False, "sliding_window": 64}, 128),
        ("Qwen2ForCausalLM", {"use_sliding_window": True, "sliding_window": 64}, 64),
        ("Qwen3ForCausalLM", {"use_sliding_window": ..., "sliding_window": 64}, 128),
    ],
)
def test_rows_are_no_longer_than_the_sliding_window(family, changes, seq_len):
    found = settings(family, **changes)
    assert model_config(found, "here").seq_len == seq_len
    assert ("window" in longest_row_is(found, architecture_of(found, "here"))) == (seq_len == 64)


def test_settings_of_earlier_transformers_are_read():
    old = settings(rope_parameters=..., rope_scaling=None, rope_theta=500.0)
    assert model_config(old, "here").rope_theta == 500.0
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    old["rope_scaling"] = llama3 | {"original_max_position_embeddings": 32}
    assert model_config(old, "here") == replace(FAMILIES["Llama 3"][2], rope_theta=500.0)
    old["rope_parameters"] = {"rope_type": "default", "rope_theta": 7.0}
    assert model_config(old, "here").rope_factor == 8.0 and model_config(old, "here").rope_theta == 500.0
    gemma = settings("GemmaForCausalLM", hidden_act="gelu", hidden_activation=None)
    assert model_config(gemma, "here").gate == "gelu"
