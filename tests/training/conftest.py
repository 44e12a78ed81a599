"""A tiny run on shards."""

import pytest
from support.runs import tiny_config

from upalm.data import shards
from upalm.data.tokens import Tokens


@pytest.fixture(scope="session")
def built_shards(tmp_path_factory, tokenizer, source_text):
    folder = tmp_path_factory.mktemp("texts")
    for i in range(0, len(source_text), 3000):
        (folder / f"{i}.txt").write_text(source_text[i : i + 3000])
    built = tmp_path_factory.mktemp("built") / "data"
    shards.build(str(folder), str(built), tokenizer)
    return str(built)


@pytest.fixture
def config(tmp_path, built_shards):
    return tiny_config(tmp_path / "run", built_shards)


@pytest.fixture(scope="session")
def tokens(tokenizer, source_text):
    pieces = [source_text[i : i + 3000] for i in range(0, 60_000, 3000)]
    return Tokens.from_documents(tokenizer.encode_documents(pieces))
