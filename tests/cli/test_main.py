"""The table of commands, and how a process ends: table, one line, traceback or silence."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from upalm import __version__
from upalm.cli import huge_pages, main


def command(*words, **env):
    """Run `upalm` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "upalm", *words], capture_output=True, text=True, env=os.environ | env, errors="replace"
    )


# --- The table ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", main.COMMANDS)
def test_a_summary_is_the_first_line_of_its_class(name):
    target, summary = main.COMMANDS[name]
    module, _, attribute = target.partition(":")
    assert getattr(importlib.import_module(module), attribute).__doc__.split("\n")[0] == summary
    assert len(summary) <= 64, "the table fits into 80 columns"


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",), ("help",)])
def test_help_lists_every_command(upalm, capsys, words):
    upalm(*words)
    out = capsys.readouterr().out
    assert all(f"  {name:13} {summary}\n" in out for name, (_, summary) in main.COMMANDS.items())


def test_help_of_a_group_lists_its_commands(upalm, capsys):
    upalm("data")
    out = capsys.readouterr().out
    assert "data build" in out and "data check" in out and "infill" not in out


def test_help_imports_neither_jax_nor_the_parser():
    code = "import sys; sys.argv = ['upalm', '--help']; from upalm.cli.main import main; main(); "
    code += "sys.exit(str({'jax', 'tyro', 'rich', 'numpy', 'grain'} & set(sys.modules) or ''))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == "" and "infill" in done.stdout


def test_the_version_is_printed(upalm, capsys):
    upalm("--version")
    assert capsys.readouterr().out == f"upalm {__version__}\n"


@pytest.mark.parametrize(
    ("words", "nearest"),
    [
        (("rum",), "'run'"),
        (("data", "buld"), "'data build'"),
        (("recipes", "copy", "palm_tiny"), "'recipes cp'"),
        (("build", "x"), "'upalm data build'"),
        (("train",), "'upalm run'"),
        (("quickstart",), "'upalm run quickstart'"),
        (("--verison",), "'--version'"),
        (("run", "quickstrt"), "'quickstart'"),
        (("run", "palm_tiny", "tinny"), "'tiny'"),
        (("recipes", "show", "palm_tyny"), "'palm_tiny'"),
    ],
)
def test_an_unknown_name_suggests_the_nearest(upalm, words, nearest):
    with pytest.raises(SystemExit, match=f"^error: .*did you mean {nearest}"):
        upalm(*words)


@pytest.mark.parametrize("word", ["help", "--help", "-h"])
def test_help_may_stand_before_the_command(upalm, capsys, word):
    with pytest.raises(SystemExit) as e:
        upalm(word, "data", "check")
    assert not e.value.code and "usage: upalm data check" in capsys.readouterr().out


# --- How a process ends ---------------------------------------------------------------------------


PRINT = "from upalm.cli import main; main.dispatch = lambda words: [print(i) for i in range(100_000)]; main.main()"


@pytest.mark.parametrize(
    "command", [("-c", PRINT), ("-m", "upalm", "data", "show", "--rows", "99", "--count", "1")], ids=["print", "rich"]
)
def test_a_reader_that_ends_ends_the_command_silently(command):
    """SIGPIPE's status is 141 in a shell."""
    with subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_ctrl_c_ends_with_130():
    handler = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # `nohup` takes Python's away
    dispatch = "from upalm.cli import main; main.dispatch = lambda words: signal.raise_signal(signal.SIGINT)"
    code = f"{handler}; {dispatch}; main.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "interrupted.\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("recipes", "cp", "palm_tiny", "nowhere/x.py"), "error: nowhere/x.py: no such file or directory."),
        (("recipes", "cp", "palm_tiny", "file/x.py"), "error: file/x.py: not a directory."),
        (("scaling", "--paper", "--out", "file/x"), "error: file/x: not a directory."),
        (("scaling", "--paper", "--out", "file"), "error: file: file exists."),
    ],
)
def test_a_file_that_the_user_named_is_one_line(upalm, words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as e:
        upalm(*words)
    assert e.value.code == message


def test_a_file_that_nobody_named_keeps_its_traceback(upalm, monkeypatch):
    monkeypatch.setattr(main, "dispatch", lambda words: open("/nowhere/ours"))
    with pytest.raises(FileNotFoundError):
        upalm("cite")


def test_missing_permission_is_one_line(upalm, monkeypatch):
    def refuse(words):
        raise PermissionError(13, "Permission denied", "runs/eval")

    monkeypatch.setattr(main, "dispatch", refuse)
    with pytest.raises(SystemExit, match="^error: runs/eval: permission denied.$"):
        upalm("eval")


def test_control_characters_in_an_error_are_spelt_out(upalm):
    with pytest.raises(SystemExit) as e:
        upalm("infill", "-c", "\x1b[31mred", "--text", "<extra_id_0>")
    assert "\x1b" not in e.value.code and "\\x1b[31mred" in e.value.code


def test_no_color_keeps_escapes_out_of_help():
    done = command("infill", "--help", NO_COLOR="1", PYTHON_TYRO_FORCE_ANSI="1", FORCE_COLOR="1")
    assert "\x1b" not in done.stdout and "--checkpoint" in done.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_one_line():
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "upalm", "cite"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "error: no space left on device.\n")


def test_closed_streams_are_no_traceback(monkeypatch):
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    monkeypatch.setattr(sys, "argv", ["upalm", "cite"])
    main.main()


def test_a_closed_output_gets_huge_pages_too(monkeypatch):
    started = []
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(huge_pages, "ACCELERATORS", ())
    monkeypatch.setattr(os, "execve", lambda *arguments: started.append(arguments))
    monkeypatch.setattr(sys, "stdout", None)
    huge_pages.use_huge_pages()
    assert started


@pytest.mark.parametrize(("encoding", "expected"), [("ascii", b"\\u2500 \\udcff"), ("utf-8", b"\xe2\x94\x80 \xff")])
def test_any_text_can_be_printed_in_any_encoding(encoding, expected):
    """A line of a box, and a byte of a file name that is not UTF-8."""
    code = "from upalm.cli import main; main.dispatch = lambda words: print('\u2500 \\udcff'); main.main()"
    env = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=env)
    assert done.stdout.strip() == expected, done.stderr
