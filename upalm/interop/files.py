"""Read and write safetensors files one tensor at a time."""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from upalm.files import parse_object, writing_problem

DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}


DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

_PIECE_BYTES = 64 << 20

_POINTER = b"version https://git-lfs.github.com/spec/"
"""Beginning of the text that Git LFS leaves in place of a file that it has not fetched."""


# --- Files ----------------------------------------------------------------------------------------


class ArrayWriter:
    """Writes a safetensors file piece by piece, so that no array need be in memory whole."""

    def __init__(self, path: Path, arrays: dict[str, tuple[np.dtype, tuple[int, ...]]]):
        header: dict[str, Any] = {"__metadata__": {"format": "upalm"}}
        at = 0
        for name, (dtype, shape) in arrays.items():
            n_bytes = dtype.itemsize * math.prod(shape)
            header[name] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [at, at + n_bytes]}
            at += n_bytes
        encoded = json.dumps(header).encode()
        encoded += b" " * (-len(encoded) % 8)
        self._file = path.open("wb")
        self._file.write(len(encoded).to_bytes(8, "little") + encoded)
        self._file.truncate(8 + len(encoded) + at)
        self._arrays, self._starts = arrays, {n: 8 + len(encoded) + header[n]["data_offsets"][0] for n in arrays}

    def write(self, name: str, first: int, array: np.ndarray) -> None:
        """Write elements `first` and after of an array, in C order."""
        dtype, _ = self._arrays[name]
        self._file.seek(self._starts[name] + first * dtype.itemsize)
        self._file.write(np.ascontiguousarray(array, dtype).view(np.uint8).data)

    def close(self) -> None:
        """Finish the file."""
        self._file.close()


def check_new(dest: Path) -> None:
    """Refuse a place where no folder can be made, before any work is done for it.

    Raises:
        ValueError: it exists, if only as a dangling link, or lies in a file or in a folder that is not writable.
    """
    if os.path.lexists(dest):
        raise ValueError(f"{dest} exists: choose another place.")
    if problem := writing_problem(dest):
        raise ValueError(f"{dest}: {problem}: choose another place.")


@contextmanager
def new_folder(dest: Path) -> Iterator[Path]:
    """Yield a folder beside `dest` that becomes `dest` at the end; if anything fails, nothing stays behind.

    Raises:
        ValueError: see `check_new`.
    """
    check_new(dest)
    dest.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{dest.name}.", dir=dest.parent))
    try:
        yield folder
        folder.chmod(0o755)
        folder.rename(dest)
    except BaseException:
        shutil.rmtree(folder)
        raise


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        ValueError: no such file, or no object in it.
    """
    if not path.is_file():
        raise ValueError(f"no {path}.")
    return parse_object(path.read_bytes(), path)


def refuse_pointer(path: Path) -> None:
    """Refuse a file of which Git LFS has left the pointer alone.

    Raises:
        ValueError: with the command that fetches it.
    """
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise ValueError(f"{path} is a pointer of Git LFS, not the file itself: run `git lfs pull` in its folder.")


def pieces(tensor: Any) -> Iterator[tuple[int, np.ndarray]]:
    """Yield a tensor by runs of rows, each with the number of elements before it."""
    n_rows, *row = tensor.get_shape()
    step = max(1, _PIECE_BYTES // (4 * math.prod(row)))
    for at in range(0, n_rows, step):
        yield at * math.prod(row), tensor[at : min(at + step, n_rows)]


@contextmanager
def open_safetensors(path: Path) -> Iterator[Any]:
    """Open a safetensors file for reading.

    Raises:
        ValueError: it is damaged, truncated or a pointer of Git LFS.
    """
    try:
        refuse_pointer(path)
        file = safetensors.safe_open(path, framework="numpy")
    except (safetensors.SafetensorError, OSError) as e:
        raise ValueError(f"{path} is damaged or truncated: {e}.") from e
    with file as entered:
        yield entered
