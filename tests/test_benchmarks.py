"""Arithmetic and labels of the benchmarks, which need no device of theirs."""

from importlib import import_module
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from upalm.planning.hlo import Program

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def test_kernels_of_as_many_layers_as_chunks_of_the_loss_are_told_apart():
    gpu_shares = import_module("gpu_shares")
    n, vocab_size = gpu_shares.LOSS_CHUNKS, 96

    def step(x_TD, weights_LDD, table_VD):
        x_TD = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x_TD, weights_LDD)[0]
        chunks = x_TD.reshape(n, -1, x_TD.shape[-1])
        return jax.lax.scan(lambda sum, x: (sum + jnp.exp(x @ table_VD.T).sum(), None), 0.0, chunks)[0]

    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((16, 8), (n, 8, 8), (vocab_size, 8))]
    program = Program.parse(jax.jit(step).lower(*arguments).compile().as_text() or "")
    runs = {(part, runs) for part, runs, _, _ in gpu_shares.kernels(program, vocab_size) if part != "products"}
    assert {("elementwise in layers", n), ("softmax of the loss", n)} <= runs


def test_decoding_kernels_are_counted_with_the_caches_of_the_timed_run():
    decoded = import_module("gpu_shares").Case(decode=1).model
    assert decoded.seq_len == import_module("gpu_speed").Case().n_slots == 1 + 128 + 288
