"""Infilling evaluations: cut gaps into held-out text, and measure how well a model fills them."""
