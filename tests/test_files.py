import hashlib

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


def test_checksum_is_that_of_the_whole_file(tmp_path):
    content = bytes(range(256)) * 10_000
    (tmp_path / "a").write_bytes(content)
    assert files.sha256_file(tmp_path / "a") == hashlib.sha256(content).hexdigest()
