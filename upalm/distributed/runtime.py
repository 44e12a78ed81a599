"""Compilation cache and package versions."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

import jax

PACKAGES = ("jax", "jaxlib", "equinox", "optax", "grain", "orbax-checkpoint", "upalm")


def versions() -> dict[str, str]:
    """Of Python and of the packages that decide numbers."""
    return {"python": platform.python_version()} | {p: version(p) for p in PACKAGES}


def enable_compilation_cache() -> None:
    """Keep compiled programs for the next start, in the user's cache, or as JAX_COMPILATION_CACHE_DIR says.

    It is JAX's cache: a program is found by itself, the flags, the versions and the machine's instructions. What takes
    a tenth of a second to compile is kept (JAX: a whole one), which on a CPU is most of the time to a first answer.
    """
    if jax.config.values["jax_compilation_cache_dir"] is None:
        home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        jax.config.update("jax_compilation_cache_dir", str(home / "upalm" / "jax"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
