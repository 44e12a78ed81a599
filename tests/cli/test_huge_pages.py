import os
import sys

import pytest

from upalm.cli import huge_pages


@pytest.fixture
def restarts(monkeypatch):
    calls = []
    monkeypatch.setattr(os, "execve", lambda *args: calls.append(args))
    monkeypatch.setattr(huge_pages, "ACCELERATORS", ())
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    return calls


def test_a_command_restarts_once_with_the_same_words(restarts, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "upalm", "cite"])
    huge_pages.use_huge_pages()
    ((program, argv, env),) = restarts
    assert (program, argv) == (sys.executable, [sys.executable, "-m", "upalm", "cite"])
    assert "GLIBC_TUNABLES" in env
    monkeypatch.setenv("GLIBC_TUNABLES", env["GLIBC_TUNABLES"])  # the second time, and where the user has chosen
    huge_pages.use_huge_pages()
    assert len(restarts) == 1


def test_a_machine_with_accelerators_is_left_alone(restarts, monkeypatch):
    monkeypatch.setattr(huge_pages, "ACCELERATORS", ("null",))  # every Linux has /dev/null
    huge_pages.use_huge_pages()
    assert restarts == []
