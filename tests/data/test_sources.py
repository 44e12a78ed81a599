import json

import pytest

from upalm.data import sources


def test_stdlib_is_text_and_split_by_module():
    corpus = sources.load("stdlib")
    assert sum(len(d.text) for d in corpus.train) > 3_000_000
    assert 0.02 < len(corpus.validation) / len(corpus.train) < 0.3
    assert not {d.name for d in corpus.train} & {d.name for d in corpus.validation}
    assert corpus == sources.load("stdlib")


def test_the_split_depends_on_the_name_alone():
    assert [sources.is_validation(n) for n in ("token", "tokenize", "argparse", "json")] == [
        sources.is_validation(n) for n in ("token", "tokenize", "argparse", "json")
    ]
    assert 60 < sum(sources.is_validation(str(i)) for i in range(1000)) < 140


def test_txt_keeps_every_character(tmp_path):
    whole = "".join(f"line {i} é\r\n\n  x\n" for i in range(6000))
    (tmp_path / "a.txt").write_text(whole, encoding="utf-8", newline="")
    corpus = sources.load(str(tmp_path / "a.txt"))
    pieces = sorted(corpus.train + corpus.validation, key=lambda d: int(d.name.split(":")[1]))
    assert "".join(d.text for d in pieces) == whole


def test_jsonl_keeps_line_separators_inside_strings(tmp_path):
    rows = [{"text": f"row {i}\u2028same row"} for i in range(40)]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in rows), encoding="utf-8")
    corpus = sources.load(str(tmp_path))
    assert sorted(d.text for d in corpus.train + corpus.validation) == sorted(r["text"] for r in rows)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent", None, "no such file or folder"),
        ("a.txt", b"", "no text in"),
        ("a.txt", b"short", "Both are needed"),
        ("a.txt", b"\xff\xfe latin", "not UTF-8"),
        ("a.csv", b"a,b", "expected one of .txt, .jsonl"),
        ("a.jsonl", b'{"text": "x"}\n{"body": "y"}', "line 2: expected an object"),
        ("a.jsonl", b'{"text": 3}', "'text' is int"),
        ("a.jsonl", b"{", "line 1"),
    ],
)
def test_bad_input_is_named(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as e:
        sources.load(str(tmp_path / name))
    assert name in str(e.value)


def test_undecodable_files_are_skipped_only_if_asked_and_counted(tmp_path):
    (tmp_path / "bad.txt").write_bytes(b"\xff\xff")
    (tmp_path / "good.txt").write_text("a line of text\n" * 20_000)
    with pytest.raises(ValueError, match=r"bad\.txt"):
        sources.load(str(tmp_path))
    corpus = sources.load(str(tmp_path), skip_undecodable=True)
    assert [p.endswith("bad.txt") for p in corpus.skipped] == [True]
    assert corpus.train
