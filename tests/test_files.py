import ast
import hashlib
import re
from pathlib import Path

import pytest
from etils import epath

from upalm import files


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    files.write_atomically(path, "old é\n")

    def fails(self, other):
        raise OSError("disk full")

    monkeypatch.setattr(type(epath.Path(path)), "replace", fails)
    with pytest.raises(OSError, match="disk full"):
        files.write_atomically(path, b"new")
    assert path.read_bytes() == "old é\n".encode()
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_two_writers_of_one_file_do_not_meet(tmp_path, monkeypatch):
    """A second process writes the file between the two steps of the first."""
    path, replace = tmp_path / "a.json", type(epath.Path(tmp_path)).replace

    def replace_after_the_other(self, target):
        monkeypatch.undo()
        files.write_atomically(path, "of the other")
        return replace(self, target)

    monkeypatch.setattr(type(epath.Path(path)), "replace", replace_after_the_other)
    files.write_atomically(path, "of the one")
    assert path.read_text() == "of the one"


def test_checksum_is_that_of_the_whole_file(tmp_path):
    content = bytes(range(256)) * 10_000
    (tmp_path / "a").write_bytes(content)
    assert files.sha256_file(tmp_path / "a") == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("content", [b"\xff", b"", "", b"{", "[" * 100_000, b"[" * 100_000, b"1" * 10_000])
def test_unreadable_json_is_a_plain_error(content):
    with pytest.raises(ValueError) as e:
        files.parse_json(content)
    assert type(e.value) is ValueError


def test_a_byte_order_mark_is_no_json():
    assert files.parse_json(b'\xef\xbb\xbf{"a": "\xc3\xa9"}') == {"a": "é"}


def leaves_encoding_open(call: ast.Call) -> bool:
    """Whether a call opens a text file in the encoding of the locale."""
    name = ast.unparse(call.func)
    is_binary = any(isinstance(x, ast.Constant) and x.value in ("rb", "wb", "r+b") for x in call.args)
    is_text = name.endswith((".read_text", ".write_text"))
    is_text |= bool(re.search(r"(?<!os\.)\bopen$", name)) and not is_binary
    return is_text and not any(keyword.arg == "encoding" for keyword in call.keywords)


def test_text_files_are_opened_in_a_named_encoding():
    """An ASCII locale would end a command after its work is done."""
    for path in Path(files.__file__).parent.rglob("*.py"):
        calls = [node for node in ast.walk(ast.parse(path.read_bytes())) if isinstance(node, ast.Call)]
        assert not [f"{path}:{call.lineno}" for call in calls if leaves_encoding_open(call)]
