"""ModelConfig, the paper's sizes, and parameter and FLOP counts."""

from dataclasses import dataclass, replace
from typing import Literal


def mfu(tokens_per_second: float, flops_per_token: float, n_chips: int, peak: float) -> float:
    """Share of the chips' peak that the model's own arithmetic takes, rematerialisation not counted (PaLM section 4.1).

    >>> round(mfu(238.3e3, 6 * 540e9, 6144, 275e12), 3)  # PaLM 540B, without attention
    0.457
    """
    return tokens_per_second * flops_per_token / (n_chips * peak)


def train_flops_per_token(n_params: int, n_layers: int, n_heads: int, d_head: int, seq_len: int) -> int:
    """Forward and backward FLOPs a token, without rematerialisation: 6N + 12LHQT (PaLM Appendix B).

    >>> train_flops_per_token(540_354_183_168, 118, 48, 256, 2048) / 1e12
    3.277...
    """
    return 6 * n_params + 12 * n_layers * n_heads * d_head * seq_len


def decode_flops_per_token(n_params: int, n_layers: int, n_heads: int, d_head: int, seq_len: int) -> int:
    """Of one cached step at the end of `seq_len` positions: 2N + 4LHQT.

    >>> decode_flops_per_token(540_354_183_168, 118, 48, 256, 2048) / 1e12
    1.092...
    """
    return 2 * n_params + 4 * n_layers * n_heads * d_head * seq_len


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a PaLM. The feed-forward is 4 x d_model in all the paper's sizes, with three matrices."""

    vocab_size: int = 256_000
    """Rows of the embedding table."""
    d_model: int = 4096
    """Width of the residual stream."""
    n_layers: int = 32
    """Number of blocks."""
    n_heads: int = 16
    """Query heads."""
    d_head: int = 256
    """Width of a head."""
    d_ff: int = 16384
    """Width of the feed-forward."""
    seq_len: int = 2048
    """Longest row the model is meant for."""
    n_kv_heads: int = 1
    """Key-value heads: 1 is PaLM's multi-query attention."""
    norm: Literal["rms", "layernorm"] = "rms"
    """Kind of normalisation."""
    norm_eps: float = 1e-6
    """Added to the mean square."""
    norm_offset: float = 1.0
    """Added to the stored norm scales: 1 for T5's zero-centred ones, 0 for those of most open checkpoints."""
    final_norm_scale: bool = False
    """Whether the final norm has a scale; PaLM's has none."""
    qk_norm: Literal["none", "norm", "l2"] = "none"
    """Norm of each query and key head: none (PaLM), the model's own kind (Cohere), or to unit length."""
    rope_theta: float = 10_000.0
    """Base of the rotary frequencies."""
    xpos_scale_base: int = 0
    """Positions over which xPos lets scores fall by its factor once; 0 is RoPE alone."""
    logit_scale: float | None = None
    """Factor of the logits; None is PaLM's 1 / sqrt(d_model)."""
    tied_head: bool = True
    """Whether the output embeddings are the input embeddings."""
    remat: Literal["none", "matmuls", "full"] = "matmuls"
    """What the backward pass computes again: nothing, all but the weight matmuls, or the whole block."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of activations; parameters are float32."""

    def __post_init__(self):
        for name in ("vocab_size", "d_model", "n_layers", "n_heads", "d_head", "d_ff", "seq_len", "n_kv_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1.")
        if self.norm_eps <= 0 or self.rope_theta <= 0 or self.xpos_scale_base < 0:
            raise ValueError(
                f"norm_eps {self.norm_eps}, rope_theta {self.rope_theta}, xpos_scale_base {self.xpos_scale_base}: "
                "expected above 0, above 0, and at least 0."
            )
        if self.d_head % 2:
            raise ValueError(f"d_head is {self.d_head}, expected an even number (RoPE rotates halves).")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}.")

    @property
    def n_params(self) -> int:
        """Parameters without the norm scales, as the paper counts them (PaLM Table 1)."""
        d, attention = self.d_model, 2 * self.n_heads * self.d_head + 2 * self.n_kv_heads * self.d_head
        tables = 1 if self.tied_head else 2
        return self.n_layers * (d * attention + 3 * d * self.d_ff) + tables * self.vocab_size * d

    @property
    def head_scale(self) -> float:
        """Factor of the logits."""
        return self.d_model**-0.5 if self.logit_scale is None else self.logit_scale


def _palm(d_model: int, n_layers: int, n_heads: int, **changes) -> ModelConfig:
    size = ModelConfig(d_model=d_model, n_layers=n_layers, n_heads=n_heads, d_ff=4 * d_model)
    return replace(size, **changes)


PALM = {
    "tiny": _palm(128, 4, 2, d_head=64, vocab_size=2048, seq_len=256),
    "small": _palm(768, 10, 6, d_head=128, vocab_size=32_000, seq_len=1024),
    "1b": _palm(2048, 16, 8, vocab_size=32_000, compute_dtype="bfloat16"),
    "8b": _palm(4096, 32, 16, compute_dtype="bfloat16"),
    "62b": _palm(8192, 64, 32, compute_dtype="bfloat16", remat="full"),
    "540b": _palm(18432, 118, 48, compute_dtype="bfloat16", remat="full"),
}
"""The paper's sizes (PaLM Table 1: 8b, 62b, 540b) and smaller ones of the same family."""
