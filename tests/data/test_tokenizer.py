import argparse
import inspect

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2

from upalm.checkpoints.shipped import PALM_TINY
from upalm.data.tokenizer import AWKWARD_TEXTS, LOW_LINE, SentencePiece
from upalm.ul2r.symbols import N_SENTINELS


@settings(max_examples=200, deadline=None)
@given(a=st.text(), b=st.text())
def test_lossless_and_joinable(tokenizer, a, b):
    assert tokenizer.decode(tokenizer.encode(a)) == a
    assert tokenizer.decode(tokenizer.encode(a) + tokenizer.encode(b)) == a + b


@settings(max_examples=200, deadline=None)
@given(text=st.text())
def test_text_never_makes_a_sentinel(tokenizer, text):
    assert max(tokenizer.encode(text), default=0) < tokenizer.first_sentinel


def test_every_sentinel_piece_is_spelt_in_bytes():
    model = sentencepiece_model_pb2.ModelProto()  # pyright: ignore[reportAttributeAccessIssue]
    model.ParseFromString((PALM_TINY / "tokenizer.model").read_bytes())
    for piece in model.pieces[-N_SENTINELS:]:
        piece.type = piece.NORMAL  # as in models from before pieces were marked unused
    tokenizer = SentencePiece(model.SerializeToString())
    pieces = [tokenizer.processor.id_to_piece(i).replace("▁", " ") for i in tokenizer.symbols.sentinels]
    plain = [tokenizer.processor.encode(p) for p in pieces]
    assert any(max(ids) >= tokenizer.first_sentinel for ids in plain)  # else this test shows nothing
    for piece, ids in zip(pieces, tokenizer.encode_documents(pieces), strict=True):
        assert max(ids) < tokenizer.first_sentinel
        assert tokenizer.decode(ids) == piece


def test_sentinels_are_the_last_hundred_ids_descending(tokenizer):
    v = tokenizer.vocab_size
    assert tokenizer.symbols.sentinels == tuple(v - 1 - i for i in range(N_SENTINELS))
    assert tokenizer.decode([v - 1, v - 2]) == "<extra_id_0><extra_id_1>"


def test_modes_are_subwords_that_decode_to_their_names(tokenizer):
    assert {k: tokenizer.decode(v) for k, v in tokenizer.symbols.modes.items()} == {
        "s2s": "[S2S]",
        "nlu": "[NLU]",
        "nlg": "[NLG]",
    }


def test_digits_are_split(tokenizer):
    assert len(tokenizer.encode("2048")) >= 4


def test_vocabulary_larger_than_the_text_supports():
    with pytest.raises(ValueError, match="does not support a vocabulary of 5000"):
        SentencePiece.train(["a few words only"], 5000)


def test_too_small_for_sentinels():
    with pytest.raises(ValueError, match="at least 360"):
        SentencePiece.train([inspect.getsource(argparse)], 345)


def test_not_a_model(tmp_path):
    (tmp_path / "t.model").write_bytes(b"not a model")
    with pytest.raises(ValueError, match="not a SentencePiece model"):
        SentencePiece.load(tmp_path / "t.model")
    with pytest.raises(ValueError, match="no tokenizer at"):
        SentencePiece.load(tmp_path / "absent.model")
    model = sentencepiece_model_pb2.ModelProto()  # pyright: ignore[reportAttributeAccessIssue]
    model.ParseFromString((PALM_TINY / "tokenizer.model").read_bytes())
    del model.pieces[300:]
    (tmp_path / "t.model").write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match=r"t\.model: a vocabulary of 300 leaves no room"):
        SentencePiece.load(tmp_path / "t.model")


def test_saving_leaves_equal_files_and_never_writes_in_place(tokenizer, tmp_path):
    """A start that is killed, or meets a full disk, must not damage the tokenizer of its run."""
    path, link = tmp_path / tokenizer.FILE, tmp_path / "link"
    tokenizer.save(tmp_path)
    before = path.stat()
    tokenizer.save(tmp_path)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    link.hardlink_to(path)
    SentencePiece.load(PALM_TINY / "tokenizer.model").save(tmp_path)
    assert link.read_bytes() == tokenizer.files[tokenizer.FILE] != path.read_bytes()


def test_lone_surrogates_are_refused_by_place(tokenizer):
    """`json.loads` makes them of half an emoji, the command line of bytes that are not UTF-8."""
    for encode in (tokenizer.encode, lambda text: tokenizer.encode_documents(["fine", text])):
        with pytest.raises(ValueError, match=r"lone surrogate U\+D83D at character 2") as e:
            encode("é \ud83d b")
        assert type(e.value) is ValueError


def test_every_code_point_comes_back(tokenizer):
    tokenizer.check_lossless()
    assert tokenizer.decode(tokenizer.encode(f"a{LOW_LINE}b c")) == f"a{LOW_LINE}b c"
    assert tokenizer.encode_documents([f"a{LOW_LINE}b"]) == [tokenizer.encode(f"a{LOW_LINE}b")]


def test_new_vocabularies_never_write_a_sentinel(tokenizer, source_text):
    assert max(tokenizer.processor.encode(source_text)) < tokenizer.first_sentinel
    assert all(tokenizer.decode(tokenizer.encode(text)) == text for text in AWKWARD_TEXTS)
