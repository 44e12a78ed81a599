"""Files that are written whole or not at all, and their checksums; on disks and in object stores."""

import hashlib

from etils import epath

LOCK = "lock"
"""Name of the file that the owner of a folder holds while it writes there (`checkpoints.lock`)."""


def is_remote(path: epath.PathLike) -> bool:
    """Whether a path lies in an object store such as gs://bucket/folder."""
    return "://" in str(path)


def write_atomically(path: epath.PathLike, content: str | bytes) -> None:
    """Write a file whole or not at all: a reader or a crash never meets half of it."""
    path, data = epath.Path(path), content.encode() if isinstance(content, str) else content
    if is_remote(path):
        path.write_bytes(data)  # an object appears whole
        return
    new = path.with_name(f"{path.name}.new")
    new.write_bytes(data)
    new.replace(path)


def sha256_file(path: epath.PathLike) -> str:
    """SHA-256 of a file in hexadecimal, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with epath.Path(path).open("rb") as f:
        while piece := f.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
