"""The memory of a process that computes on the CPU."""

import os
import sys
from pathlib import Path

_TUNABLES = "glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1"


_ACCELERATORS = ("nvidia[0-9]*", "accel[0-9]*", "vfio/[0-9]*", "kfd")


def use_huge_pages() -> None:
    """Start this process again with glibc's malloc asking for huge pages, unless the user has set it up.

    XLA:CPU allocates its temporaries anew at every step; with pages of 4 kB, faults cost a tenth of a training step.
    One arena for all threads takes back the memory that huge pages waste (docs/performance.md). malloc reads both
    only when a process starts. Nothing is done on other systems than Linux, or on a host of accelerators.
    """
    if sys.platform != "linux" or "GLIBC_TUNABLES" in os.environ:
        return
    if any(any(Path("/dev").glob(pattern)) for pattern in _ACCELERATORS):
        return
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | {"GLIBC_TUNABLES": _TUNABLES})
