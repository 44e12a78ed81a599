"""Files that are written whole or not at all, their checksums and their JSON; on disks and in object stores."""

import hashlib
import json
import os
import secrets
from pathlib import Path
from typing import Any

from etils import epath

LOCK = "lock"
"""Name of the file that the owner of a folder holds while it writes there (`checkpoints.lock`)."""

_STORES = ("gs", "s3")
"""Object stores that addresses may begin with."""


def is_remote(path: epath.PathLike) -> bool:
    """Whether a path lies in an object store such as gs://bucket/folder."""
    return "://" in str(path)


def bucket_of(path: Path) -> str:
    """The address that a path was made of, which pathlib cuts to gs:/bucket/folder; empty for one on a disk.

    >>> bucket_of(Path("gs://bucket/folder"))
    'gs://bucket/folder'
    """
    before, cut, rest = str(path).partition(":/")
    store = before.rpartition("/")[2]
    return f"{store}://{rest}" if cut and store in _STORES else ""


def writing_problem(path: Path) -> str | None:
    """Say why nothing can be written at a place, which need not be there yet; None if it can."""
    nearest = next(place for place in (path, *path.absolute().parents) if os.path.lexists(place))
    if not nearest.is_dir():
        return f"{nearest} is a file, expected a folder"
    return None if os.access(nearest, os.W_OK | os.X_OK) else f"{nearest} is not writable"


def write_atomically(path: epath.PathLike, content: str | bytes) -> None:
    """Write a file whole or not at all: a reader or a crash never meets half of it.

    It is written under another name first, which ends in `.new`. Only a process that is killed leaves one behind.
    """
    path, data = epath.Path(path), content.encode() if isinstance(content, str) else content
    if is_remote(path):
        path.write_bytes(data)  # an object appears whole
        return
    new = path.with_name(f"{path.name}.{secrets.token_hex(4)}.new")  # two writers of one file never share it
    try:
        with new.open("wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())  # else a crash of the machine may keep the name and lose the content
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def sha256_file(path: epath.PathLike) -> str:
    """SHA-256 of a file in hexadecimal, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with epath.Path(path).open("rb") as f:
        while piece := f.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def parse_json(content: str | bytes) -> Any:
    """Parse JSON, in UTF-8 where it is bytes; a byte-order mark in front is left out.

    Raises:
        ValueError: not UTF-8, not JSON, or nested deeper than Python reads.
    """
    try:
        return json.loads(content if isinstance(content, str) else content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as e:  # plain, so that commands show one line
        raise ValueError(str(e)) from e


def parse_object(content: bytes, path: object) -> dict[str, Any]:
    """Parse the JSON object that a file has.

    Raises:
        ValueError: no object; `path` is named.
    """
    try:
        value = parse_json(content)
    except ValueError as e:
        raise ValueError(f"{path} is damaged: {e}.") from e
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged: expected an object.")
    return value
