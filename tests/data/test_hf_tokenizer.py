"""Tokenizers of open checkpoints: lossless, and their sentinels."""

import hashlib
import json
from dataclasses import asdict, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.cohere import VOCAB, byte_level

from upalm.data.config import DataConfig
from upalm.data.hf_tokenizer import JsonTokenizer, load_tokenizer
from upalm.data.hf_vocabulary import BYTE_LETTERS
from upalm.data.loader import Loader
from upalm.data.readers import Document
from upalm.data.roles import Roles, choose_roles
from upalm.data.tokenizer import LOW_LINE
from upalm.data.tokens import encode
from upalm.interop.hf_tokenizer_files import tokenizer_files
from upalm.ul2r.symbols import N_SENTINELS

tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is absent: pip install '.[hf]'")


def made(raw, **ends):
    content = raw.to_str().encode()
    return JsonTokenizer(content, choose_roles(content, **({"bos_id": 1, "eos_id": 2} | ends)))


@pytest.fixture(scope="session")
def theirs(source_text):
    return made(byte_level(source_text))


@pytest.fixture(scope="session")
def exported(tokenizer):
    """A tokenizer that is not byte-level: our SentencePiece model in the format of Hugging Face."""
    content = tokenizer_files(tokenizer)["tokenizer.json"]
    return JsonTokenizer(content, choose_roles(content, bos_id=0, eos_id=1))


@pytest.fixture(scope="session")
def with_fallback(exported):
    """The same as Llama 2 writes it, whose pieces have U+2581 for each space."""

    def change(described):
        described["model"]["vocab"] = [[p.replace(" ", LOW_LINE), score] for p, score in described["model"]["vocab"]]
        described["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": LOW_LINE}
        space = {"type": "Replace", "pattern": {"String": LOW_LINE}, "content": " "}
        described["decoder"]["decoders"].insert(0, space)

    return JsonTokenizer(edited(exported, change), exported.roles)


@settings(max_examples=200, deadline=None)
@given(a=st.text(), b=st.text())
def test_lossless_joinable_and_without_sentinels(theirs, a, b):
    ids = theirs.encode(a) + theirs.encode(b)
    assert theirs.decode(theirs.encode(a)) == a
    assert theirs.decode(ids) == a + b
    assert not theirs.is_sentinel(ids).any() and not {1, 2} & set(ids)


def test_bytes_of_tokens_are_the_text(theirs, exported, with_fallback, source_text):
    for tokenizer in (theirs, exported, with_fallback):
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
    assert found.hash == theirs.hash and found.files == other.files  # a chat template decides no id


def test_companions_decide_no_identity(theirs, tmp_path):
    """Shards and runs stay usable when a template is added, and those of earlier versions open."""
    theirs.save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    (tmp_path / "tokenizer_config.json").write_text("{}")
    dressed = load_tokenizer(tmp_path)
    assert dressed.companions.keys() == {"chat_template.jinja", "tokenizer_config.json"}
    assert dressed.hash == theirs.hash
    roles = {k: v for k, v in asdict(theirs.roles).items() if k != "modes"}  # as they were stored before
    before = theirs.files["tokenizer.json"] + json.dumps(roles).encode() + b"\n"
    companions = dressed.companions["tokenizer_config.json"] + dressed.companions["chat_template.jinja"]
    for former in (before, before + companions):
        assert hashlib.sha256(former).hexdigest()[:16] in dressed.hashes
    other = JsonTokenizer(theirs.files["tokenizer.json"], replace(theirs.roles, eos_id=0))
    assert other.hash != theirs.hash and not set(other.hashes) & set(theirs.hashes)


def edited(tokenizer, change) -> bytes:
    """The content of a tokenizer.json after `change` of what it describes."""
    described = json.loads(tokenizer.files["tokenizer.json"])
    change(described)
    return json.dumps(described).encode()


def as_llama_2(described):
    steps = [{"type": "Prepend", "prepend": LOW_LINE}, described["normalizer"]]
    described["normalizer"] = {"type": "Sequence", "normalizers": steps}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    described["decoder"]["decoders"].append(strip)


def as_metaspace(described):
    described["normalizer"] = None
    step = {"type": "Metaspace", "replacement": LOW_LINE, "prepend_scheme": "first", "split": False}
    described["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [step, described["pre_tokenizer"]]}


def test_a_space_put_in_front_is_left_out(with_fallback):
    for change in (as_llama_2, as_metaspace):
        tokenizer = JsonTokenizer(edited(with_fallback, change), with_fallback.roles)
        tokenizer.check_lossless()
        assert tokenizer.encode("a  b") == with_fallback.encode("a  b")


def with_added_token(**flags):
    token = {"id": 700, "content": "<user>", "single_word": False, "normalized": False, "special": False}
    return lambda described: described["added_tokens"].append(token | {"lstrip": False, "rstrip": False} | flags)


def test_added_tokens_take_no_spaces_along(theirs):
    content = edited(theirs, with_added_token(lstrip=True, rstrip=True))
    tokenizer = JsonTokenizer(content, choose_roles(content, bos_id=1, eos_id=2))
    ids = tokenizer.encode("a <user> b")
    assert 700 in ids and tokenizer.decode(ids) == "a <user> b"


def as_qwen(described):
    described["normalizer"] = {"type": "NFC"}


def test_characters_are_not_composed(theirs):
    tokenizer = JsonTokenizer(edited(theirs, as_qwen), theirs.roles)
    for text in ("e\u0301", "\u212b", "\u1100\u1161"):
        tokenizer.check_text(text)


def without_bytes(*missing):
    def change(described):
        model = described["model"]
        letters = {BYTE_LETTERS[b] for b in missing}
        model["vocab"] = {p: i for p, i in model["vocab"].items() if not letters & set(p)}
        model["merges"] = [m for m in model["merges"] if not letters & set("".join(m))]

    return change


def test_bytes_that_never_occur_may_be_absent(theirs):
    """SmolLM2's vocabulary lacks 8 bytes of UTF-8."""
    tokenizer = JsonTokenizer(edited(theirs, without_bytes(0xF4, 0xF3)), theirs.roles)
    tokenizer.check_lossless()
    assert tokenizer.decode(tokenizer.encode("caf\u00e9 \u2603")) == "caf\u00e9 \u2603"
    with pytest.raises(ValueError, match=r"no piece for the byte 0xF4, which .* \(U\+10FFFF\) at character 2"):
        tokenizer.encode("a \U0010ffff")
    with pytest.raises(ValueError, match="0xF4"):
        tokenizer.encode_documents(["fine", "\U0010ffff"])


def test_tokenizers_of_hugging_face_are_imported_first(theirs, tmp_path):
    """Neither the folder nor the file nor the name on the hub says which ids are sentinels."""
    (tmp_path / "tokenizer.json").write_bytes(theirs.files["tokenizer.json"])
    for place in (tmp_path, tmp_path / "tokenizer.json", "owner/model"):
        with pytest.raises(ValueError, match="no .*`upalm import-hf SOURCE --out FOLDER` makes the folder to give"):
            load_tokenizer(place)


def test_the_text_that_is_lost_is_named(theirs):
    """Stripped accents, which only some texts have."""
    lossy = edited(
        theirs, lambda d: d.update(normalizer={"type": "Replace", "pattern": {"String": "\u2603"}, "content": "*"})
    )
    with pytest.raises(ValueError, match="not lossless: '\u2603' becomes '\\*'"):
        JsonTokenizer(lossy, theirs.roles).check_lossless()


def test_sentinels_are_those_that_are_chosen(theirs, source_text):
    content = byte_level(source_text, n_reserved=240).to_str().encode()

    def sentinels(kind, n_rows=0):
        return choose_roles(content, bos_id=1, eos_id=2, n_rows=n_rows, sentinels=kind)

    assert sentinels("reserved").sentinels == [*range(3, 103)] == sentinels("auto", 999).sentinels
    assert sentinels("reserved-last").sentinels == [*range(143, 243)] == sentinels("levanter").sentinels
    assert sentinels("subwords").sentinels == [*range(699, 599, -1)]
    rows = sentinels("unused-rows", 850)
    assert rows.sentinels == [*range(849, 749, -1)] and "no subword has, ids 849 down to 750" in rows.sentinels_are
    levanter = JsonTokenizer(content, sentinels("levanter"))
    assert levanter.symbols.modes == {"nlu": (6,), "nlg": (7,), "s2s": (8,)}
    assert set(levanter.symbols.never_generated) >= {6, 7, 8} and levanter.token_bytes[6] == b""
    with pytest.raises(ValueError, match="100 sentinels are needed, and the vocabulary offers 0 named"):
        sentinels("named")
    with pytest.raises(ValueError, match="offers 50 unused-rows"):
        sentinels("unused-rows", 750)


def test_unused_rows_are_taken_before_subwords(theirs):
    content = theirs.files["tokenizer.json"]
    tokenizer = JsonTokenizer(content, choose_roles(content, bos_id=1, eos_id=2, n_rows=1000))
    assert tokenizer.symbols.sentinels == tuple(range(999, 899, -1)) and tokenizer.vocab_size == 1000
    tokenizer.check_lossless()
    assert tokenizer.decode([*tokenizer.encode("a"), 999]) == "a<extra_id_0>"


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
        (lambda j: j.update(normalizer={"type": "Lowercase"}), "not lossless"),
        (lambda j: j.update(decoder=None, pre_tokenizer=None), "no piece for 243"),
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
        JsonTokenizer(content, replace(theirs.roles, eos_id=9999))
    with pytest.raises(ValueError, match="1 different sentinels"):
        JsonTokenizer(content, Roles(1, 2, [600] * 100, ""))
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ValueError, match="no .*symbols.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "symbols.json").write_text('{"bos": 1}')
    with pytest.raises(ValueError, match=str(tmp_path)):
        load_tokenizer(tmp_path)
