"""Strict defaults for every test, and a small tokenizer of real text."""

import argparse
import inspect

import jax
import pytest

from upalm.tokenizer import SentencePiece, Tokenizer

jax.config.update("jax_numpy_rank_promotion", "raise")

TEXT = inspect.getsource(argparse)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return SentencePiece.train([TEXT], 512)


@pytest.fixture(scope="session")
def source_text() -> str:
    return TEXT
