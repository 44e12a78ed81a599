"""The lock of a run folder."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import locker

from upalm.checkpoints import lock


def test_second_owner_is_refused_by_name_until_the_first_ends(tmp_path):
    with lock.hold(tmp_path / "run"):
        with pytest.raises(ValueError, match=f"run is in use by process {os.getpid()} on .* since 2.*choose another"):
            lock.check_free(tmp_path / "run")
        with pytest.raises(ValueError, match="is in use by"), lock.hold(tmp_path / "run"):
            pass
    lock.check_free(tmp_path / "run")
    with lock.hold(tmp_path / "run"):
        pass


def test_dead_owner_holds_no_lock(tmp_path):
    words = [sys.executable, locker.__file__, tmp_path / "run"]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=env) as owner:
        assert owner.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=f"is in use by process {owner.pid} on"):
            lock.check_free(tmp_path / "run")
        owner.send_signal(signal.SIGKILL)
    assert (tmp_path / "run" / "lock").is_file()
    lock.check_free(tmp_path / "run")
    with lock.hold(tmp_path / "run"):
        (tmp_path / "run" / "config.json").write_text("{}")
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["config.json"]


def test_folder_in_which_nothing_was_written_is_removed(tmp_path):
    with lock.hold(tmp_path / "run"):
        assert (tmp_path / "run" / "lock").is_file()
    assert not (tmp_path / "run").exists()
