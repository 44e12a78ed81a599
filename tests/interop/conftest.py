"""Imports of these tests check each tokenizer once."""

import pytest

from upalm.data.tokenizer import Tokenizer

_CHECKED: set[str] = set()


@pytest.fixture(scope="session", autouse=True)
def _check_each_tokenizer_once():
    """A check goes over all code points, and the models of these tests share a few tokenizers."""
    check = Tokenizer.check_lossless

    def check_once(tokenizer: Tokenizer) -> None:
        if tokenizer.hash not in _CHECKED:
            check(tokenizer)
            _CHECKED.add(tokenizer.hash)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tokenizer, "check_lossless", check_once)
        yield
