"""Environments of the processes that tests start."""

import os

import jax

_QUICK_FLAGS = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
# JAX 0.11 has no such flags, and ends at one that it does not know, as libtpu does
_KNOWN_FLAGS = _QUICK_FLAGS if jax.__version_info__ < (0, 11) else ""
USERS_FLAGS = os.environ.get("XLA_FLAGS", "").replace(_QUICK_FLAGS, "").strip()
"""XLA_FLAGS as they were before these tests began."""

QUICK_TO_COMPILE = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "XLA_FLAGS": f"{_KNOWN_FLAGS} {USERS_FLAGS}".strip()}
"""What conftest.py sets for the tests and their processes: programs compile in half the time, and run more slowly."""

AS_USERS_HAVE = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0", "XLA_FLAGS": USERS_FLAGS}
"""Optimised programs."""


def with_devices(n: int) -> dict[str, str]:
    """The environment of a process with n fake CPU devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={n}"
    return os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags.strip()}
