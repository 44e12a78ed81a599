"""Names, shapes and layouts of weights in Hugging Face files.

Dims: D d_model, N heads, K key-value heads, H d_head, F d_ff, V vocabulary.
"""

import math
import re

import numpy as np

from upalm.checkpoints.arrays import to_arrays
from upalm.interop.architectures import Architecture
from upalm.model.config import ModelConfig
from upalm.model.palm import empty_model

TOP = {"embed": "model.embed_tokens.weight", "norm": "model.norm.weight", "head": "lm_head.weight"}
"""Names of the arrays outside the blocks."""

BUFFER = re.compile(r".*\.rotary_emb\.inv_freq")
"""Arrays that are computed, not learnt."""

_BLOCK = {
    "wq": ("self_attn.q_proj.weight", ("NH", "D")),
    "wk": ("self_attn.k_proj.weight", ("KH", "D")),
    "wv": ("self_attn.v_proj.weight", ("KH", "D")),
    "wo": ("self_attn.o_proj.weight", ("D", "NH")),
    "w_gate": ("mlp.gate_proj.weight", ("F", "D")),
    "w_up": ("mlp.up_proj.weight", ("F", "D")),
    "w_down": ("mlp.down_proj.weight", ("D", "F")),
    "bq": ("self_attn.q_proj.bias", ("NH",)),
    "bk": ("self_attn.k_proj.bias", ("KH",)),
    "bv": ("self_attn.v_proj.bias", ("KH",)),
    "q_norm": ("self_attn.q_norm.weight", ()),
    "k_norm": ("self_attn.k_norm.weight", ()),
}
"""Name and shape in the file of each weight of a block; joined axes are written together."""

_QK_NORM_SHAPES = {"norm": ("{}", "H"), "shared": ("H",), "flat": ("{}H",), "l2": ("{}", "H"), "none": ()}
"""Shape in the file of a query (N) or key (K) norm, by `ModelConfig.qk_norm`."""

_ROTARY = ("wq", "wk", "q_norm", "k_norm", "bq", "bk")


def hf_names(config: ModelConfig, row: Architecture) -> dict[str, tuple[str, int]]:
    """Return, for each name in the file, the name of the array here and the layer (-1 outside the blocks)."""
    arrays = to_arrays(empty_model(config))
    names = {hf_name: (name, -1) for name, hf_name in TOP.items() if name in arrays}
    block = {name: hf_name for name, (hf_name, _) in _BLOCK.items()}
    block |= {"norm": f"{row.norm}.weight", "mlp_norm": f"{row.mlp_norm}.weight"}
    for name, hf_name in block.items():
        if f"blocks.{name}" in arrays:
            names |= {f"model.layers.{i}.{hf_name}": (f"blocks.{name}", i) for i in range(config.n_layers)}
    return names


def hf_shape(name: str, config: ModelConfig) -> tuple[int, ...]:
    """Return the shape in the file of an array that has this name here."""
    sizes = {"D": config.d_model, "N": config.n_heads, "K": config.n_kv_heads, "H": config.d_head}
    sizes |= {"F": config.d_ff, "V": config.vocab_size}
    block = name.removeprefix("blocks.")
    if block in ("norm", "mlp_norm"):
        return (sizes["D"],)
    if block == name:
        return (sizes["V"], sizes["D"])
    letters = _BLOCK[block][1]
    if block in ("q_norm", "k_norm"):
        heads = "N" if block == "q_norm" else "K"
        letters = tuple(part.format(heads) for part in _QK_NORM_SHAPES[config.qk_norm])
    return tuple(math.prod(sizes[letter] for letter in joined) for joined in letters)


def from_hf_layout(name: str, hf_array: np.ndarray, config: ModelConfig, row: Architecture) -> np.ndarray:
    """Return a layer's weight as it lies here. Elements move, none is changed."""
    block = name.removeprefix("blocks.")
    if block == name or block in ("norm", "mlp_norm"):
        return hf_array
    if block.startswith("w_"):
        return hf_array.T
    if block == "wo":
        return hf_array.T.reshape(config.n_heads, config.d_head, -1)
    heads = hf_array.reshape(-1, config.d_head, *hf_array.shape[1:][: block.startswith("w")])
    if row.interleaved and block in _ROTARY:
        heads = heads[:, _halves(config.d_head)]
    return heads.transpose(2, 0, 1) if block.startswith("w") else heads


def to_hf_layout(name: str, array: np.ndarray, config: ModelConfig, row: Architecture) -> np.ndarray:
    """Return a layer's weight as it lies in the file: the inverse of `from_hf_layout`."""
    block = name.removeprefix("blocks.")
    if block == name or block in ("norm", "mlp_norm"):
        return array
    if block.startswith("w_"):
        return array.T
    if block == "wo":
        return array.reshape(-1, config.d_model).T
    heads = array.transpose(1, 2, 0) if block.startswith("w") else array
    if row.interleaved and block in _ROTARY:
        heads = heads[:, np.argsort(_halves(config.d_head))]
    return heads.reshape(hf_shape(name, config))


def _halves(d_head: int) -> np.ndarray:
    """Place in an interleaved file of each number of a head here: the first of each pair, then the second."""
    return np.concatenate([np.arange(0, d_head, 2), np.arange(1, d_head, 2)])
