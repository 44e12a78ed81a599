"""Cohere's names, shapes and layouts of weights."""

import math
import re
from typing import NamedTuple

import numpy as np

from upalm.checkpoints.arrays import to_arrays
from upalm.model.config import ModelConfig
from upalm.model.palm import empty_model

ARCHITECTURE = "CohereForCausalLM"


# --- Names and shapes -----------------------------------------------------------------------------


class _Weight(NamedTuple):
    """Where a weight of a block is, there."""

    name: str
    shape: tuple[str, ...]
    """There, in letters; joined axes are written together."""


_BLOCK = {
    "norm": _Weight("input_layernorm.weight", ("D",)),
    "wq": _Weight("self_attn.q_proj.weight", ("NH", "D")),
    "wk": _Weight("self_attn.k_proj.weight", ("KH", "D")),
    "wv": _Weight("self_attn.v_proj.weight", ("KH", "D")),
    "wo": _Weight("self_attn.o_proj.weight", ("D", "NH")),
    "w_gate": _Weight("mlp.gate_proj.weight", ("F", "D")),
    "w_up": _Weight("mlp.up_proj.weight", ("F", "D")),
    "w_down": _Weight("mlp.down_proj.weight", ("D", "F")),
    "q_norm": _Weight("self_attn.q_norm.weight", ("N", "H")),
    "k_norm": _Weight("self_attn.k_norm.weight", ("K", "H")),
}


_ROTARY = {"wq", "wk", "q_norm", "k_norm"}


_TOP = {"embed": "model.embed_tokens.weight", "norm": "model.norm.weight", "head": "lm_head.weight"}


_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")


_BUFFER = re.compile(r".*\.rotary_emb\.inv_freq")


def _sizes(config: ModelConfig) -> dict[str, int]:
    named = {"D": config.d_model, "N": config.n_heads, "K": config.n_kv_heads, "H": config.d_head}
    return named | {"F": config.d_ff, "V": config.vocab_size}


def _names(config: ModelConfig) -> dict[str, tuple[str, int]]:
    """Name there -> (name here, layer; -1 outside the blocks)."""
    here = to_arrays(empty_model(config))
    names = {there: (name, -1) for name, there in _TOP.items() if name in here}
    for name, weight in _BLOCK.items():
        if f"blocks.{name}" in here:
            names |= {f"model.layers.{i}.{weight.name}": (f"blocks.{name}", i) for i in range(config.n_layers)}
    return names


def _shape(name: str, config: ModelConfig) -> tuple[int, ...]:
    """The shape there of a weight that has this name here."""
    sizes = _sizes(config)
    if not name.startswith("blocks."):
        return (sizes["D"],) if name == "norm" else (sizes["V"], sizes["D"])
    letters = _BLOCK[name.removeprefix("blocks.")].shape
    return tuple(math.prod(sizes[letter] for letter in joined) for joined in letters)


def _halves(d_head: int) -> np.ndarray:
    """Place there of each number of a head here: the first of each pair, then the second."""
    return np.concatenate([np.arange(0, d_head, 2), np.arange(1, d_head, 2)])


def from_hf_layout(name: str, there: np.ndarray, config: ModelConfig) -> np.ndarray:
    """A layer's weight as it is here. Elements move, none is changed."""
    block = name.removeprefix("blocks.")
    if block == name or there.ndim == 1:
        return there
    if block in ("q_norm", "k_norm"):
        return there[:, _halves(config.d_head)]
    if block in ("wq", "wk", "wv"):
        heads = there.reshape(-1, config.d_head, config.d_model)
        heads = heads[:, _halves(config.d_head)] if block in _ROTARY else heads
        return heads.transpose(2, 0, 1)
    return there.T.reshape(config.n_heads, config.d_head, -1) if block == "wo" else there.T


def to_hf_layout(name: str, here: np.ndarray, config: ModelConfig) -> np.ndarray:
    """The inverse of `from_hf_layout`."""
    block = name.removeprefix("blocks.")
    if block == name or here.ndim == 1:
        return here
    back = np.argsort(_halves(config.d_head))
    if block in ("q_norm", "k_norm"):
        return here[:, back]
    if block in ("wq", "wk", "wv"):
        heads = here.transpose(1, 2, 0)
        return (heads[:, back] if block in _ROTARY else heads).reshape(-1, config.d_model)
    return here.reshape(-1, config.d_model).T if block == "wo" else here.T


# --- LayerNorm as RMS norm ------------------------------------------------------------------------


def fold_layernorm(config: ModelConfig) -> ModelConfig:
    """The same function with RMS norm, for weights that `centred` has been over.

    LayerNorm takes the mean off the residual stream. If all that is written to the stream has mean 0 then so has the
    stream, and LayerNorm is RMS norm: exact but for rounding. The output embeddings are read, not written, so they
    stay as they are and are no longer tied.
    """
    return ModelConfig(**{**config.__dict__, "norm": "rms", "tied_head": False})


def is_centred(name: str, config: ModelConfig) -> bool:
    """Whether folding changes a weight: what is written to the residual stream, and what is under a query-key norm."""
    return name in ("embed", "blocks.wo", "blocks.w_down") or (
        name in ("blocks.wq", "blocks.wk") and config.qk_norm == "norm"
    )


def centred(here: np.ndarray) -> np.ndarray:
    """A weight whose output, the last axis, has mean 0."""
    wide = here.astype(np.float64)
    return (wide - wide.mean(-1, keepdims=True)).astype(np.float32)
