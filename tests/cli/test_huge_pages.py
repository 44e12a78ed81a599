import os
import sys

import pytest

from upalm.cli import huge_pages


@pytest.fixture
def started(monkeypatch):
    calls = []
    monkeypatch.setattr(os, "execve", lambda *args: calls.append(args))
    monkeypatch.setattr(huge_pages, "_ACCELERATORS", ())
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    return calls


def test_the_same_command_is_started_once_more(started, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "upalm", "cite"])
    huge_pages.use_huge_pages()
    ((program, argv, env),) = started
    assert (program, argv) == (sys.executable, [sys.executable, "-m", "upalm", "cite"])
    assert "GLIBC_TUNABLES" in env
    monkeypatch.setenv("GLIBC_TUNABLES", env["GLIBC_TUNABLES"])  # the second time, and where the user has chosen
    huge_pages.use_huge_pages()
    assert len(started) == 1


def test_a_host_of_accelerators_is_left_alone(started, monkeypatch):
    monkeypatch.setattr(huge_pages, "_ACCELERATORS", ("null",))  # every Linux has /dev/null
    huge_pages.use_huge_pages()
    assert started == []
