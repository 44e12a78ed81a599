"""The version of upalm."""

__version__ = "0.1.0"
