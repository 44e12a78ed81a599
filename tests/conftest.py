"""Strict defaults for every test, and a small tokenizer of real text."""

import argparse
import inspect
import socket

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


@pytest.fixture
def bucket(monkeypatch):
    """A Google Cloud Storage server of this machine."""
    pytest.importorskip("gcsfs", reason="an object store needs the extra `gcs`")
    server = pytest.importorskip("gcp_storage_emulator.server", reason="the object store's stand-in is not installed")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{s.getsockname()[1]}"
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", endpoint)  # for etils
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # it would look for credentials first
    monkeypatch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", endpoint)  # for ArrayRecord
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", endpoint)  # for Orbax
    monkeypatch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")
    running = server.create_server("127.0.0.1", int(endpoint.rsplit(":")[-1]), in_memory=True, default_bucket="bucket")
    running.start()
    yield "gs://bucket"
    running.stop()
