"""Strict defaults for every test, and a small tokenizer of real text."""

import argparse
import atexit
import gc
import inspect
import os
import shutil
import tempfile

import jax
import pytest
from support.environment import QUICK_TO_COMPILE

from upalm.data.tokenizer import SentencePiece, Tokenizer

jax.config.update("jax_numpy_rank_promotion", "raise")
# most of what tests do is compiling; the processes that they start do likewise, but for the quickstart
jax.config.update("jax_disable_most_optimizations", True)
os.environ |= QUICK_TO_COMPILE
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # one for all processes of these tests, and none of the user's
    folder = tempfile.mkdtemp(prefix="programs")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ |= {"JAX_COMPILATION_CACHE_DIR": folder, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
if "JAX_PLATFORMS" not in os.environ:  # with libtpu installed, JAX would look for a TPU first
    jax.config.update("jax_platforms", "cpu")
    os.environ["JAX_PLATFORMS"] = "cpu"

collect_ignore = ["support"]  # recipes and processes that tests start: no tests, and their examples are not run
TEXT = inspect.getsource(argparse)


def pytest_configure(config):
    config.option.loadscopereorder = False  # of xdist, which would take the files with the most tests first


def pytest_collection_modifyitems(items):
    """Files with slow tests come first, so that no process of several is left with a long one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return SentencePiece.train([TEXT], 512)


@pytest.fixture(scope="session")
def source_text() -> str:
    return TEXT


@pytest.fixture(scope="module", autouse=True)
def _compiled_programs():
    """Forget programs after each file: each takes memory maps, a process has 65,530, and without one LLVM crashes."""
    yield
    jax.clear_caches()
    gc.collect()
