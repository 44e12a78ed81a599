"""ModelConfig, the paper's sizes, and parameter and FLOP counts.

Dims: D d_model, N heads, K key-value heads, H d_head, F d_ff, V vocabulary, L layers.
"""

import math
from dataclasses import dataclass
from typing import Literal

from upalm.checks import check_choices, is_whole


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a PaLM, and the options that turn its block into those of other open models."""

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
    """Width of the feed-forward, which has three matrices; 4 x d_model in all the paper's sizes."""
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
    qk_norm: Literal["none", "norm", "l2", "shared", "flat"] = "none"
    """Norm of queries and keys: none (PaLM); of each head, with a scale per head (norm: Cohere) or one scale (shared:
    Qwen 3); of each head to unit length (l2); or over all heads at once (flat: OLMo 2)."""
    rope_theta: float = 10_000.0
    """Base of the rotary frequencies."""
    xpos_scale_base: int = 0
    """Positions over which xPos lets scores fall by its factor once; 0 is RoPE alone."""
    logit_scale: float | None = None
    """Factor of the logits; None is PaLM's 1 / sqrt(d_model)."""
    tied_head: bool = True
    """Whether the output embeddings are the input embeddings."""
    remat: Literal["none", "matmuls", "full"] = "matmuls"
    """Activations that the backward pass recomputes: none, all but the weight matmuls, or the whole block."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of activations; parameters are float32."""
    block: Literal["parallel", "sequential", "post_norm"] = "parallel"
    """Attention and feed-forward side by side under one norm (PaLM), one after the other with a norm before each
    (Llama), or with a norm after each (OLMo 2)."""
    gate: Literal["silu", "gelu"] = "silu"
    """Activation of the feed-forward's gate; gelu is the tanh approximation (Gemma)."""
    qkv_bias: bool = False
    """Whether queries, keys and values have biases (Qwen 2)."""
    embed_scale: float = 1.0
    """Factor of the input embeddings: 1 in PaLM, sqrt(d_model) in Gemma."""
    rope_factor: float = 1.0
    """Llama 3's rotary scaling: long wavelengths are stretched by this factor; 1 stretches none."""
    rope_low_freq_factor: float = 1.0
    """With `rope_factor`: wavelengths above `rope_original_seq_len` / this are stretched in full."""
    rope_high_freq_factor: float = 4.0
    """With `rope_factor`: wavelengths below `rope_original_seq_len` / this are not stretched."""
    rope_original_seq_len: int = 8192
    """With `rope_factor`: row length before the scaling."""

    def __post_init__(self):
        check_choices(self)
        for name, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name} is {value}, expected a finite number.")
        for name in ("vocab_size", "d_model", "n_layers", "n_heads", "d_head", "d_ff", "seq_len", "n_kv_heads"):
            n = getattr(self, name)
            if not is_whole(n) or n < 1:
                raise ValueError(f"{name} is {n!r}, expected a whole number of at least 1.")
        for name in ("norm_eps", "rope_theta", "embed_scale", "logit_scale"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected above 0.")
        if self.xpos_scale_base < 0:
            raise ValueError(f"xpos_scale_base is {self.xpos_scale_base}, expected at least 0 (0 is RoPE alone).")
        if self.d_head % 2:
            raise ValueError(f"d_head is {self.d_head}, expected an even number (RoPE rotates halves).")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}.")
        low, high = self.rope_low_freq_factor, self.rope_high_freq_factor
        if self.rope_factor < 1 or not 0 < low < high or self.rope_original_seq_len < 1:
            raise ValueError(
                f"rope_factor {self.rope_factor}, rope_low_freq_factor {low}, rope_high_freq_factor {high}, "
                f"rope_original_seq_len {self.rope_original_seq_len}: expected a factor of at least 1 (1 is no "
                "scaling), 0 < low < high, and a length of at least 1."
            )

    @property
    def n_params(self) -> int:
        """Parameters without the norm scales, as the paper counts them (PaLM Table 1)."""
        d, h, n, k = self.d_model, self.d_head, self.n_heads, self.n_kv_heads
        biases = (n + 2 * k) * h if self.qkv_bias else 0
        tables = 1 if self.tied_head else 2
        return self.n_layers * (d * 2 * (n + k) * h + biases + 3 * d * self.d_ff) + tables * self.vocab_size * d

    @property
    def head_scale(self) -> float:
        """Factor of the logits."""
        return self.d_model**-0.5 if self.logit_scale is None else self.logit_scale

    def train_flops_per_token(self, seq_len: int | None = None) -> int:
        """Forward and backward FLOPs per token, without rematerialisation: 6N + 12LHQT (PaLM Appendix B).

        Args:
            seq_len: positions per row; the longest row of the model if not given.

        >>> PALM["540b"].train_flops_per_token() / 1e12
        3.277...
        """
        return 6 * self.n_params + 12 * self._attention_products(seq_len)

    def decode_flops_per_token(self, seq_len: int | None = None) -> int:
        """FLOPs of one cached step at the end of `seq_len` positions: 2N + 4LHQT.

        >>> PALM["540b"].decode_flops_per_token() / 1e12
        1.092...
        """
        return 2 * self.n_params + 4 * self._attention_products(seq_len)

    def _attention_products(self, seq_len: int | None) -> int:
        """Multiplications per token in the scores of all layers and heads: LHQT."""
        return self.n_layers * self.n_heads * self.d_head * (seq_len or self.seq_len)

    def mfu(self, tokens_per_second: float, n_chips: int, peak_flops: float, seq_len: int | None = None) -> float:
        """Model FLOPs utilisation: share of the chips' peak, without rematerialisation (PaLM section 4.1).

        Args:
            tokens_per_second: of training, on all chips.
            n_chips: number of chips.
            peak_flops: FLOP/s of a chip.
            seq_len: positions per row; the longest row of the model if not given.

        >>> round(PALM["540b"].mfu(238.3e3, 6144, 275e12), 3)  # PaLM 540B with attention
        0.462
        """
        return tokens_per_second * self.train_flops_per_token(seq_len) / (n_chips * peak_flops)


def _palm(d_model: int, n_layers: int, n_heads: int, **changes) -> ModelConfig:
    return ModelConfig(d_model=d_model, n_layers=n_layers, n_heads=n_heads, d_ff=4 * d_model, **changes)


PALM = {
    "tiny": _palm(128, 4, 2, d_head=64, vocab_size=2048, seq_len=256),
    "small": _palm(768, 10, 6, d_head=128, vocab_size=32_000, seq_len=1024),
    "1b": _palm(2048, 16, 8, vocab_size=32_000, compute_dtype="bfloat16"),
    "8b": _palm(4096, 32, 16, compute_dtype="bfloat16"),
    "62b": _palm(8192, 64, 32, compute_dtype="bfloat16", remat="full"),
    "540b": _palm(18432, 118, 48, compute_dtype="bfloat16", remat="full"),
}
"""The paper's sizes (PaLM Table 1: 8b, 62b, 540b) and smaller ones of the same family."""
