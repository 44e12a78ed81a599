"""Small random models of transformers, one per family, and the same weights as a Decoder."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from upalm.model.config import ModelConfig
from upalm.model.palm import Decoder, empty_model

SHAPE = ModelConfig(
    vocab_size=200,
    d_model=48,
    n_layers=3,
    n_heads=4,
    d_head=16,
    d_ff=80,
    seq_len=128,
    n_kv_heads=2,
    norm_eps=1e-5,
    norm_offset=0.0,
    final_norm_scale=True,
    logit_scale=1.0,
    tied_head=False,
    block="sequential",
)
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
FAMILIES: dict[str, tuple[str, dict[str, Any], ModelConfig]] = {
    "Llama 2": ("Llama", {}, SHAPE),
    "Llama 3": (
        "Llama",
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500.0} | LLAMA3},
        replace(SHAPE, rope_theta=500.0, rope_factor=8.0, rope_original_seq_len=32),
    ),
    "SmolLM2": ("Llama", {"tie_word_embeddings": True}, replace(SHAPE, tied_head=True)),
    "Mistral": ("Mistral", {"sliding_window": None}, SHAPE),
    "Qwen 2": ("Qwen2", {}, replace(SHAPE, qkv_bias=True)),
    "Qwen 3": ("Qwen3", {}, replace(SHAPE, qk_norm="shared")),
    "OLMo 2": ("Olmo2", {}, replace(SHAPE, d_head=12, block="post_norm", qk_norm="flat")),
    "Gemma": (
        "Gemma",
        {"num_key_value_heads": 1, "tie_word_embeddings": True},
        replace(SHAPE, n_kv_heads=1, norm_offset=1.0, gate="gelu", embed_scale=48**0.5, tied_head=True),
    ),
}
"""transformers' class, its settings beyond the shape, and ours."""

_BLOCK = {
    "wq": "self_attn.q_proj.weight",
    "wk": "self_attn.k_proj.weight",
    "wv": "self_attn.v_proj.weight",
    "wo": "self_attn.o_proj.weight",
    "w_gate": "mlp.gate_proj.weight",
    "w_up": "mlp.up_proj.weight",
    "w_down": "mlp.down_proj.weight",
    "bq": "self_attn.q_proj.bias",
    "bk": "self_attn.k_proj.bias",
    "bv": "self_attn.v_proj.bias",
    "q_norm": "self_attn.q_norm.weight",
    "k_norm": "self_attn.k_norm.weight",
}
_NORMS = {
    "sequential": {"norm": "input_layernorm.weight", "mlp_norm": "post_attention_layernorm.weight"},
    "post_norm": {"norm": "post_attention_layernorm.weight", "mlp_norm": "post_feedforward_layernorm.weight"},
}


def transformers_model(family: str, **settings: Any):
    """A model of the family in fp32, whose norms and biases are random, so that leaving one out shows.

    `settings` override those of its config.
    """
    torch = pytest.importorskip("torch", reason="torch is absent: pip install '.[oracles]'")
    transformers = pytest.importorskip("transformers", reason="transformers is absent: pip install '.[oracles]'")
    name, changes, config = FAMILIES[family]
    common = dict(
        vocab_size=config.vocab_size,
        hidden_size=config.d_model,
        intermediate_size=config.d_ff,
        num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads,
        num_key_value_heads=config.n_kv_heads,
        head_dim=config.d_head,
        rms_norm_eps=config.norm_eps,
        max_position_embeddings=config.seq_len,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        initializer_range=0.2,
        pad_token_id=None,  # else its row is 0 and has no gradient
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    hf_config = getattr(transformers, f"{name}Config")(**(common | changes | settings))
    model = getattr(transformers, f"{name}ForCausalLM")(hf_config).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name or parameter_name.endswith("bias"):
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def as_decoder(arrays: dict[str, np.ndarray], config: ModelConfig) -> Decoder:
    """A Decoder of transformers' weights, or of their gradients, by name."""

    def leaf(path: Any, shape: jax.ShapeDtypeStruct) -> jax.Array:
        names = [entry.name for entry in path]
        if names[0] != "blocks":
            top = {"embed": "model.embed_tokens.weight", "norm": "model.norm.weight", "head": "lm_head.weight"}
            return jnp.asarray(arrays[top[names[0]]])
        hf_name = (_BLOCK | _NORMS[config.block])[names[1]]
        layers = [arrays[f"model.layers.{i}.{hf_name}"] for i in range(config.n_layers)]
        is_matrix = hf_name.startswith(("self_attn", "mlp")) and hf_name.endswith("_proj.weight")
        return jnp.stack([jnp.asarray((x.T if is_matrix else x).reshape(shape.shape[1:])) for x in layers])

    return jax.tree_util.tree_map_with_path(leaf, empty_model(config))


def numpy_arrays(tensors: Any) -> dict[str, np.ndarray]:
    """Named tensors of transformers as fp32 arrays."""
    return {name: x.detach().float().numpy() for name, x in tensors}
