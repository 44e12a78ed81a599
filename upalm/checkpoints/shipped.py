"""Checkpoints that the package ships."""

from pathlib import Path

PALM_TINY = Path(__file__).parents[1] / "assets" / "palm_tiny"
"""A causal base of 1.2M parameters, trained on Python's standard library by `upalm run palm_tiny`."""
