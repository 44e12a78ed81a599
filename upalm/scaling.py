"""Compute: the papers' FLOPs formulas. Plain numbers in, plain numbers out."""


def train_flops_per_token(n_params: int, n_layers: int, n_heads: int, d_head: int, seq_len: int) -> int:
    """Forward and backward FLOPs a token, without rematerialisation: 6N + 12LHQT (PaLM Appendix B).

    >>> train_flops_per_token(540_354_183_168, 118, 48, 256, 2048) / 1e12
    3.277...
    """
    return 6 * n_params + 12 * n_layers * n_heads * d_head * seq_len
