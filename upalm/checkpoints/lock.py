"""The lock of a run folder: one trainer at a time. The kernel releases it when its owner dies."""

import errno
import fcntl
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO

from upalm.distributed import processes
from upalm.files import LOCK, is_remote

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL)


@contextmanager
def hold(folder: Path | str) -> Iterator[None]:
    """Hold the lock of a folder, on the first process of a run; nothing in a bucket, which has no locks.

    Raises:
        ValueError: another run holds it, or the folder cannot be written to; on every process.
    """
    file = None
    with processes.raising_everywhere():
        if processes.is_first() and not is_remote(folder):
            try:
                file = _acquire(Path(folder))
            except OSError as e:
                raise ValueError(f"{folder} cannot be written to ({e.strerror}): choose another folder.") from e
    try:
        yield
    finally:
        if file is not None:
            (Path(folder) / LOCK).unlink(missing_ok=True)
            file.close()
            with suppress(OSError):
                Path(folder).rmdir()  # only if nothing was written


def check_free(folder: Path | str) -> None:
    """Refuse a folder that another run holds.

    Raises:
        ValueError: its process and host.
    """
    path = Path(folder) / LOCK
    if is_remote(folder) or not path.is_file():
        return
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise ValueError(_in_use(path)) from e
        except OSError:
            pass  # a file system without locks


def _acquire(folder: Path) -> IO[str]:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    while True:
        file = path.open("a", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            file.close()
            raise ValueError(_in_use(path)) from e
        except OSError as e:
            if e.errno not in _NO_LOCKS:
                raise
            print(f"warning: no locks on {folder} ({e.strerror}): do not start a second run there.", file=sys.stderr)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break
        file.close()  # its last owner has just removed it
    file.truncate(0)
    owner = f"process {os.getpid()} on {socket.gethostname()} since {datetime.now():%Y-%m-%d %H:%M:%S}"
    print(owner, file=file, flush=True)
    return file


def _in_use(path: Path) -> str:
    owner = path.read_text(encoding="utf-8", errors="replace").strip() or "another process"
    return f"{path.parent} is in use by {owner}: wait for its end, stop it, or choose another --out."
