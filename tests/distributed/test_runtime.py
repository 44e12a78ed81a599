"""The compilation cache: where it is, and that nothing needs it."""

import os
import pwd

import jax
import pytest

from upalm.distributed.runtime import enable_compilation_cache

CACHE = "jax_compilation_cache_dir"


@pytest.fixture(autouse=True)
def no_cache(monkeypatch):
    """No cache is set, and HOME is all that is known."""
    before = {name: jax.config.values[name] for name in (CACHE, "jax_persistent_cache_min_compile_time_secs")}
    jax.config.update(CACHE, None)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_cache_lies_in_xdg_cache_home_or_in_home(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    enable_compilation_cache()
    assert jax.config.values[CACHE] == str(tmp_path / "home" / ".cache" / "upalm" / "jax")
    jax.config.update(CACHE, None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    enable_compilation_cache()
    assert jax.config.values[CACHE] == str(tmp_path / "xdg" / "upalm" / "jax")
    jax.config.update(CACHE, None)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which the specification tells to ignore
    enable_compilation_cache()
    assert jax.config.values[CACHE] == str(tmp_path / "home" / ".cache" / "upalm" / "jax")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("xdg", [None, "xdg"])
def test_nothing_needs_home_or_an_entry_in_passwd(monkeypatch, tmp_path, capsys, xdg):
    def unknown(uid):
        raise KeyError(uid)

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    if xdg is None:
        enable_compilation_cache()
        assert jax.config.values[CACHE] is None
        assert "compiled programs are not cached" in capsys.readouterr().err
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / xdg))
        enable_compilation_cache()
        assert jax.config.values[CACHE] == str(tmp_path / xdg / "upalm" / "jax")


@pytest.mark.parametrize("where", ["file", "unwritable"])
def test_cache_that_cannot_be_written_is_none(monkeypatch, tmp_path, capsys, where):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if where == "file":
        (tmp_path / "cache").write_text("")
    else:
        monkeypatch.setattr(os, "access", lambda path, mode: False)
    enable_compilation_cache()
    assert jax.config.values[CACHE] is None
    assert "compiled programs are not cached" in capsys.readouterr().err
