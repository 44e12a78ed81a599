"""Checksums of arrays."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from upalm.checkpoints.arrays import checksums


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 23), st.integers(0, 31))
def test_flipped_bit_changes_the_checksum(place, bit):
    array = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    before = checksums({"x": jnp.asarray(array)})["x"]
    array.view(np.uint32).reshape(-1)[place] ^= np.uint32(1 << bit)
    assert checksums({"x": jnp.asarray(array)})["x"] != before


def test_checksum_depends_on_order_and_not_on_layout():
    array = np.arange(24, dtype=np.float32).reshape(4, 6)
    sums = {name: int(v) for name, v in checksums({"a": jnp.asarray(array), "b": jnp.asarray(array[::-1])}).items()}
    assert sums["a"] != sums["b"]
    with np.errstate(over="ignore"):
        rows, columns = np.indices((4, 6), dtype=np.uint32)
        place = rows * np.uint32(0x9E3779B1) + columns
        expected = (array.view(np.uint32) * (2 * place + 1)).sum(dtype=np.uint32)
    assert sums["a"] == expected
