"""The command line in this process, and a small checkpoint for it."""

import sys

import jax
import pytest

from upalm.checkpoints.folder import export
from upalm.cli import main
from upalm.model.config import ModelConfig
from upalm.model.palm import Decoder


@pytest.fixture
def upalm(monkeypatch):
    def call(*words):
        monkeypatch.setattr(sys, "argv", ["upalm", *map(str, words)])
        main.main()

    return call


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("m")
    config = ModelConfig(vocab_size=512, d_model=32, n_layers=2, n_heads=2, d_head=16, d_ff=64, seq_len=128)
    export(folder, Decoder(config, key=jax.random.key(0)), tokenizer, {})
    return str(folder)
