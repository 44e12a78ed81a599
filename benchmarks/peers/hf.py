"""Models of transformers: Cohere, which with one key-value head is PaLM's architecture with LayerNorm, and Llama.

Needs: pip install torch transformers
"""

import os
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
import transformers

from .shapes import ADAMW, Shape


def build_model(shape: Shape, device: str = "cpu", dtype: torch.dtype = torch.float32) -> transformers.PreTrainedModel:
    """Random weights. On the CPU, every core takes part."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    sizes = dict(
        hidden_size=shape.d_model,
        intermediate_size=shape.d_ff,
        num_hidden_layers=shape.n_layers,
        num_attention_heads=shape.n_heads,
        num_key_value_heads=shape.n_kv_heads,
        vocab_size=shape.vocab_size,
        max_position_embeddings=2 * shape.seq_len,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    if shape.block == "sequential":
        config = transformers.LlamaConfig(**sizes)
    else:
        config = transformers.CohereConfig(**sizes, logit_scale=1.0)
    with torch.device(device):
        return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")


def preload() -> None:
    """Import what building a model imports: transformers looks it up late."""
    assert transformers.LlamaForCausalLM and transformers.CohereForCausalLM


def train_step(
    shape: Shape,
    rows: np.ndarray,
    compiled: Literal["no", "layers", "whole"],
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Callable[[], torch.Tensor]:
    """One step of AdamW on the same batch [B, T + 1], which returns the loss.

    With `compiled="layers"`, torch.compile takes one layer for all, and the loss: it takes seconds where the whole
    model takes minutes.
    """
    model = build_model(shape, device, dtype).train()
    ids = torch.from_numpy(rows).to(device)
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].reshape(-1)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=ADAMW["learning_rate"],
        betas=(ADAMW["b1"], ADAMW["b2"]),
        eps=ADAMW["eps"],
        weight_decay=ADAMW["weight_decay"],
        fused=True,
    )

    def loss_of_hidden(hidden: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(model.lm_head(hidden).view(-1, shape.vocab_size), targets)

    def loss_of_batch() -> torch.Tensor:
        return loss_of_hidden(model.model(inputs, use_cache=False).last_hidden_state)

    if compiled == "layers":
        for layer in model.model.layers:
            layer.compile()
        loss_of_hidden = torch.compile(loss_of_hidden)
    loss_fn = torch.compile(loss_of_batch) if compiled == "whole" else loss_of_batch

    def step() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_fn()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def generate(shape: Shape, prompt: np.ndarray, n_new: int) -> Callable[[], None]:
    """Greedy decoding of `n_new` tokens after the prompt [B, T], with a key-value cache."""
    model, ids = build_model(shape).eval(), torch.from_numpy(prompt)
    settings = transformers.GenerationConfig(
        max_new_tokens=n_new, min_new_tokens=n_new, do_sample=False, use_cache=True, pad_token_id=0
    )

    @torch.inference_mode()
    def call() -> None:
        found = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
        assert found.shape[1] == ids.shape[1] + n_new

    return call
