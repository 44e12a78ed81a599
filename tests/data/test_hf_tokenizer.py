"""Tokenizers of open checkpoints: lossless, and their sentinels."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.cohere import VOCAB, byte_level

from upalm.data.config import DataConfig
from upalm.data.hf_tokenizer import JsonTokenizer, Roles, choose_roles, load_tokenizer, to_json
from upalm.data.loader import Loader
from upalm.data.readers import Document
from upalm.data.tokens import encode
from upalm.ul2r.symbols import N_SENTINELS

tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is absent: pip install '.[hf]'")


def made(raw, **ends):
    content = raw.to_str().encode()
    return JsonTokenizer(content, choose_roles(content, **({"bos_id": 1, "eos_id": 2} | ends)))


@pytest.fixture(scope="session")
def theirs(source_text):
    return made(byte_level(source_text))


@pytest.fixture(scope="session")
def with_fallback(tokenizer):
    """Not byte-level: our SentencePiece model in their format."""
    content = to_json(tokenizer)["tokenizer.json"]
    return JsonTokenizer(content, choose_roles(content, bos_id=0, eos_id=1))


@settings(max_examples=200, deadline=None)
@given(a=st.text(), b=st.text())
def test_lossless_joinable_and_without_sentinels(theirs, a, b):
    ids = theirs.encode(a) + theirs.encode(b)
    assert theirs.decode(theirs.encode(a)) == a
    assert theirs.decode(ids) == a + b
    assert not theirs.is_sentinel(ids).any() and not {1, 2} & set(ids)


def test_bytes_of_tokens_are_the_text(theirs, with_fallback, source_text):
    for tokenizer in (theirs, with_fallback):
        text = source_text[:4000] + "é\t☃"
        assert b"".join(tokenizer.token_bytes[i] for i in tokenizer.encode(text)).decode() == text
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_last_hundred_subwords_are_sentinels_and_are_spelt_in_bytes(theirs, source_text):
    assert theirs.symbols.sentinels == tuple(range(VOCAB - 1, VOCAB - 1 - N_SENTINELS, -1))
    assert "last 100 subwords" in theirs.sentinels_are
    raw = byte_level(source_text)
    pieces = [raw.decode([i]) for i in theirs.symbols.sentinels]
    assert any(theirs.is_sentinel(raw.encode(p).ids).any() for p in pieces)  # else this test shows nothing
    for piece, ids in zip(pieces, theirs.encode_documents(pieces), strict=True):
        assert not theirs.is_sentinel(ids).any() and theirs.decode(ids) == piece


def test_special_tokens_in_text_are_characters(theirs):
    ids = theirs.encode("a <BOS> b <EOS>")
    assert not {1, 2} & set(ids) and theirs.decode(ids) == "a <BOS> b <EOS>"
    assert theirs.decode([1, *ids, 2]) == "a <BOS> b <EOS>"
    assert set(theirs.symbols.never_generated) >= {0, 1} and 2 not in theirs.symbols.never_generated


def test_reserved_tokens_are_taken_before_subwords(source_text):
    found = made(byte_level(source_text, n_reserved=110))
    assert found.symbols.sentinels == tuple(range(3, 103))
    assert found.sentinels_are == "reserved tokens <|reserved_token_0|> to <|reserved_token_99|>"
    few = made(byte_level(source_text, n_reserved=60))
    assert "last 100 subwords" in few.sentinels_are


def test_its_own_sentinels_come_first(with_fallback, tokenizer):
    assert with_fallback.symbols.sentinels == tokenizer.symbols.sentinels
    assert "own <extra_id_0>" in with_fallback.sentinels_are
    assert with_fallback.symbols.modes == tokenizer.symbols.modes
    assert not with_fallback.is_sentinel(with_fallback.encode("<extra_id_0>")).any()


def test_saved_and_loaded_it_is_the_same(theirs, tmp_path):
    other = JsonTokenizer(theirs.files["tokenizer.json"], theirs.roles, {"chat_template.jinja": b"hi"})
    other.save(tmp_path)
    found = load_tokenizer(tmp_path)
    assert (found.symbols, found.hash) == (other.symbols, other.hash)
    assert found.hash != theirs.hash and found.files == other.files


def test_rows_begin_with_its_bos_and_end_with_its_eos(theirs, source_text):
    documents = [Document("a", source_text[:20_000])]
    corpus = encode(theirs, documents)
    assert corpus.ids[-1] == 2
    batch = Loader(corpus, DataConfig(mixture="ul2r", seq_len=64, batch_size=8), theirs.symbols, seed=0).batch(0)
    starts = (batch.positions == 0) & (batch.segment_ids > 0)
    assert (batch.input_tokens[starts] == 1).all() and starts.any()
    assert (batch.target_tokens == 2).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda j: j.update(model={}), "not a tokenizer.json with a vocabulary"),
        (lambda j: j["model"]["vocab"].pop("Ġ"), "no piece for 1 of the 256 bytes"),
        (lambda j: j.update(normalizer={"type": "Lowercase"}), "not lossless"),
        (lambda j: j.update(decoder=None, pre_tokenizer=None), "no piece for 256"),
        (lambda j: j.update(normalizer={"type": "Unheard of"}), "not a tokenizer.json: "),
    ],
)
def test_what_cannot_serve_is_refused(theirs, change, message):
    described = json.loads(theirs.files["tokenizer.json"])
    change(described)
    with pytest.raises(ValueError, match=message):
        JsonTokenizer(json.dumps(described).encode(), theirs.roles)


def test_roles_must_be_in_the_vocabulary(theirs, tmp_path):
    content = theirs.files["tokenizer.json"]
    with pytest.raises(ValueError, match="ids \\[9999\\] are not in the vocabulary"):
        JsonTokenizer(content, theirs.roles._replace(eos_id=9999))
    with pytest.raises(ValueError, match="1 different sentinels"):
        JsonTokenizer(content, Roles(1, 2, [600] * 100, ""))
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ValueError, match="no .*symbols.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "symbols.json").write_text('{"bos": 1}')
    with pytest.raises(ValueError, match=str(tmp_path)):
        load_tokenizer(tmp_path)
