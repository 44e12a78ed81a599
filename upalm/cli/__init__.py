"""The `upalm` command line."""
