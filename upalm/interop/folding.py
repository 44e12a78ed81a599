"""LayerNorm as RMS norm: exact but for rounding, for models whose residual stream is kept at mean 0."""

from dataclasses import replace

import numpy as np

from upalm.model.config import ModelConfig


def fold_layernorm(config: ModelConfig) -> ModelConfig:
    """Return the options of the same function with RMS norm, for weights that `centre` has been applied to.

    LayerNorm subtracts the mean of the residual stream. If everything that is written to the stream has mean 0 then so
    has the stream, and LayerNorm is RMS norm. The output embeddings are read, not written, so they stay as they are and
    are no longer tied.
    """
    return replace(config, norm="rms", tied_head=False)


def is_centred(name: str, config: ModelConfig) -> bool:
    """Return whether folding changes a weight: one written to the residual stream, or one under a query-key norm."""
    return name in ("embed", "blocks.wo", "blocks.w_down") or (
        name in ("blocks.wq", "blocks.wk") and config.qk_norm == "norm"
    )


def centre(array: np.ndarray) -> np.ndarray:
    """Subtract the mean over the last axis, the output of a weight; fp32."""
    wide = array.astype(np.float64)
    return (wide - wide.mean(-1, keepdims=True)).astype(np.float32)
