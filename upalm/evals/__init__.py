"""Evaluations: infilling and held-out text."""
