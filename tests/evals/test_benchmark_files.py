"""Benchmark files: damage is named by file, line and field."""

import gzip

import pytest

from upalm.evals.benchmark_files import read
from upalm.evals.task import Source
from upalm.evals.tasks import english


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"choices": ["a"], "gold": 0}', r"line 1: field 'query' is missing, the row has \['choices', 'gold'\]"),
        ('{"query": "q", "choices": ["a", "b"], "gold": 2}', r"'gold' is 2, there are 2 choices \(0 to 1\)"),
        ('{"query": "q", "choices": ["a", "b"], "gold": -1}', "'gold' is -1"),
        ('{"query": "q", "choices": ["a", "b"], "gold": true}', "'gold' is True, expected one of"),
        ('{"query": 3, "choices": ["a"], "gold": 0}', "'query' is 3, expected a string"),
        ('{"query": "q", "choices": [], "gold": 0}', "expected a list of strings"),
        ('{"query": "q"', "line 1: not JSON"),
        ('{"query": "a \\ud83d b", "choices": ["a"], "gold": 0}', "line 1: field 'query' is .* surrogate"),
        ('{"query": "q", "choices": ["a"], "gold": NaN}', "'gold' is nan, expected one of"),
        ("[1]", "field 'choices' is missing, the row has list"),
        ("[" * 100000, "line 1: not JSON"),
        ("", "has no rows"),
    ],
)
def test_bad_rows_are_named(line, message, tmp_path):
    (tmp_path / "t.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match=message):
        Source("t.jsonl", english._from_foundry("")).load(tmp_path)


def test_rows_end_at_line_feeds_alone(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"a": "x\u2028y\u0085z"}\n', encoding="utf-8")
    assert [r.text("a") for r in read(tmp_path / "t.jsonl")] == ["x\u2028y\u0085z"]


def test_damaged_files_are_named(tmp_path):
    whole = gzip.compress(b'{"a": "x"}\n' * 1000)
    for name, content in (
        ("cut", whole[:-20]),
        ("false", b"no gzip"),
        ("flipped", whole[:12] + b"\0\0\0" + whole[15:]),
    ):
        path = tmp_path / f"{name}.jsonl.gz"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}.jsonl.gz cannot be read"):
            read(path)
    with pytest.raises(ValueError, match="latin.jsonl, line 1: not JSON in UTF-8"):
        (tmp_path / "latin.jsonl").write_bytes('{"a": "é"}\n'.encode("latin-1"))
        read(tmp_path / "latin.jsonl")


def test_byte_order_marks_and_crlf_are_no_content(tmp_path):
    (tmp_path / "t.jsonl").write_bytes(b'\xef\xbb\xbf{"a": "x"}\r\n{"a": "y"}\r\n')
    assert [row.text("a") for row in read(tmp_path / "t.jsonl")] == ["x", "y"]


def test_numbers_are_finite(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"a": NaN, "b": {"x": Infinity}}\n')
    [row] = read(tmp_path / "t.jsonl")
    with pytest.raises(ValueError, match="'a' is nan, expected a finite number"):
        row.number("a")
    with pytest.raises(ValueError, match="'x' is inf, expected a finite number"):
        row.numbers("b")
