"""Safetensors files written piece by piece."""

import struct

import numpy as np
import safetensors.numpy

from upalm.interop.files import ArrayWriter


def test_the_library_reads_what_the_writer_wrote(tmp_path):
    arrays = {"a": np.arange(24, dtype=np.float32).reshape(2, 3, 4), "b": np.ones(3, np.float16)}
    writer = ArrayWriter(tmp_path / "x.safetensors", {k: (v.dtype, v.shape) for k, v in arrays.items()})
    writer.write("b", 0, arrays["b"])
    for i in (1, 0):
        writer.write("a", 12 * i, arrays["a"][i])
    writer.close()
    stored = safetensors.numpy.load_file(tmp_path / "x.safetensors")
    assert all((stored[k] == v).all() and stored[k].dtype == v.dtype for k, v in arrays.items())
    (size,) = struct.unpack("<Q", (tmp_path / "x.safetensors").read_bytes()[:8])
    assert size % 8 == 0
