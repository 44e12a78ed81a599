"""Small Cohere models with random weights, and a byte-level tokenizer trained on real text: what a user imports."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest

VOCAB, ROWS = 700, 704


def oracle(name: str):
    """The module, or the test is skipped."""
    return pytest.importorskip(name, reason=f"{name} is absent: pip install '.[oracles]'")


def small_cohere(**changes):
    """A transformers model whose norms are not all ones, so that leaving one out shows."""
    torch, transformers = oracle("torch"), oracle("transformers")
    shape = dict(hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4, head_dim=16)
    ids = dict(vocab_size=ROWS, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    rope = dict(rope_parameters={"rope_type": "default", "rope_theta": 5000.0}, max_position_embeddings=256)
    rest = dict(num_key_value_heads=1, logit_scale=0.3, initializer_range=0.2)
    config = transformers.CohereConfig(**(shape | ids | rope | rest | changes))
    torch.manual_seed(0)
    model = transformers.CohereForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@cache
def byte_level(text: str, n_reserved: int = 0):
    """A tokenizers.Tokenizer of 700 ids: three special tokens, reserved ones if asked, bytes, merges."""
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is absent: pip install '.[hf]'")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    special = ["<PAD>", "<BOS>", "<EOS>", *(f"<|reserved_token_{i}|>" for i in range(n_reserved))]
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([text], trainer)
    return made


def save(model, folder: Path, text: str, dtype: str = "float32", shard: str = "50GB") -> Path:
    """Write a checkpoint as users find it: config.json, safetensors, tokenizer.json."""
    import torch

    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=shard)
    byte_level(text).save(str(folder / "tokenizer.json"))
    return folder


def edit(path: Path, **changes) -> None:
    """Change settings of a JSON file; None removes one."""
    found = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in found.items() if v is not None}))


def logits(model, ids: np.ndarray, mask: np.ndarray | None = None, positions: np.ndarray | None = None) -> np.ndarray:
    """Logits of [B, T] ids under a boolean [B, T, T] mask; causal without one."""
    import torch

    given = {}
    if mask is not None:
        given["attention_mask"] = torch.where(torch.tensor(mask)[:, None], 0.0, torch.finfo(torch.float32).min)
    if positions is not None:
        given["position_ids"] = torch.tensor(positions.astype(np.int64))
    return model(torch.tensor(ids.astype(np.int64)), **given).logits
