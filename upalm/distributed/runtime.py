"""Compilation cache and package versions."""

import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

import jax

PACKAGES = ("jax", "jaxlib", "equinox", "optax", "grain", "orbax-checkpoint", "upalm")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide numbers."""
    return {"python": platform.python_version()} | {p: version(p) for p in PACKAGES}


def enable_compilation_cache() -> None:
    """Cache compiled programs on disk so that later starts skip compilation.

    The folder is JAX_COMPILATION_CACHE_DIR, or upalm/jax in XDG_CACHE_HOME or ~/.cache; without a writable one, nothing
    is cached. JAX finds a program by its code, flags, versions and the machine's instructions. All are kept (JAX alone
    keeps those that take 1 s to compile): a first answer needs tens of small ones.
    """
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME", ""))  # a relative one is invalid
        folder = (home if home.is_absolute() else Path.home() / ".cache") / "upalm" / "jax"
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(f"{folder} is not writable")
    except (OSError, RuntimeError) as e:  # RuntimeError: neither HOME nor an entry in the list of users
        note = f"compiled programs are not cached ({str(e).rstrip('.')}); JAX_COMPILATION_CACHE_DIR names a folder."
        print(f"note: {note}", file=sys.stderr)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
