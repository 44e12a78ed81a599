"""Compute: the papers' FLOPs formulas, and what chips can do. Plain numbers in, plain numbers out."""

PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989e12,
}
"""Dense bf16 FLOP/s of a chip, by the beginning of its `device_kind`. TPU v4: PaLM section 4; other TPUs: Google
Cloud's system architecture pages; A100, H100 and H200: NVIDIA's data sheets, without sparsity."""


def peak_flops(device_kind: str) -> float | None:
    """Of one chip; None if it is unknown. The longest name that fits counts.

    >>> peak_flops("TPU v5 lite") / 1e12
    197.0
    """
    fitting = [name for name in PEAK_FLOPS if device_kind.startswith(name)]
    return PEAK_FLOPS[max(fitting, key=len)] if fitting else None


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
