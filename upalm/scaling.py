"""Compute: the papers' FLOPs formulas. Plain numbers in, plain numbers out."""


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
