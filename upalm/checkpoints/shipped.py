"""Checkpoints that the package ships."""

from pathlib import Path

PALM_TINY = Path(__file__).parents[1] / "assets" / "palm_tiny"
"""A causal base of 2.4M parameters, trained on Python source by `upalm run palm_tiny base`; it never saw a gap."""

UPALM_TINY = Path(__file__).parents[1] / "assets" / "upalm_tiny"
"""`PALM_TINY` continued with UL2R by `upalm run ul2r_tiny ul2r`; it fills gaps."""
