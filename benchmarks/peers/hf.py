"""Models of transformers: Cohere, which with one key-value head is PaLM's architecture with LayerNorm, and Llama.

Needs: pip install torch transformers
"""

import os
from collections.abc import Callable

import numpy as np
import torch
import transformers

from .shapes import ADAMW, Shape


def build_model(shape: Shape) -> transformers.PreTrainedModel:
    """Random weights, float32, on the CPU with every core."""
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
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
    return transformers.CohereForCausalLM(transformers.CohereConfig(**sizes, logit_scale=1.0))


def train_step(shape: Shape, rows: np.ndarray, compiled: bool) -> Callable[[], dict[str, float]]:
    """One step of AdamW on the same batch [B, T + 1], with or without torch.compile."""
    model = build_model(shape).train()
    ids = torch.from_numpy(rows)
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].reshape(-1)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=ADAMW["learning_rate"],
        betas=(ADAMW["b1"], ADAMW["b2"]),
        eps=ADAMW["eps"],
        weight_decay=ADAMW["weight_decay"],
        fused=True,
    )

    def loss_of_batch() -> torch.Tensor:
        logits = model(inputs, use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.view(-1, shape.vocab_size), targets)

    loss_fn = torch.compile(loss_of_batch) if compiled else loss_of_batch

    def step() -> dict[str, float]:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_fn()
        loss.backward()
        optimizer.step()
        return {"loss": loss.item()}

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
