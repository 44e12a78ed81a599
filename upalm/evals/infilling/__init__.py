"""Infilling evaluations: gaps in held-out text, and how well a model fills them."""
