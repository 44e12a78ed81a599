import os

import pytest

from upalm.checkpoints import lock


def test_rows_are_shown_with_statistics_and_controls_spelt_out(upalm, capsys, tmp_path):
    for name in range(40):
        (tmp_path / f"{name}.txt").write_text("\x1b[31mred [/b] [bold]text[/bold] " * 40)
    upalm("data", "show", "--data", tmp_path, "--mixture", "causal", "--rows", 1, "--count", 3)
    out = capsys.readouterr().out
    assert "[bold]text[/bold]" in out and "\\x1b[31mred [/b]" in out and "\x1b" not in out
    assert "3 rows, " in out and "spans per example" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("build", "x", "--out", ""), "--out is empty"),
        (("build", "x"), "missing from upalm data build:\n    --out FOLDER"),
        (("build", "x", "--out", "y", "--tokenizer", "z", "--vocab-size", "512"), "give it or --tokenizer, not both"),
        (("build", "--out", "x"), "missing from upalm data build:\n    DATA\n"),
        (("show", "--layout", "x"), "invalid choice 'x' for argument '--layout'"),
        (("show", "--data.source", "x"), "unrecognized options: --data.source, x"),
    ],
)
def test_a_mistake_in_the_options_names_them(upalm, capsys, words, message):
    with pytest.raises(SystemExit) as e:
        upalm("data", *words)
    assert e.value.code == 2 and message in capsys.readouterr().err


def test_shards_take_no_tokenizer_beside_their_own(upalm, tmp_path, source_text):
    (tmp_path / "a.txt").write_text(source_text)
    upalm("data", "build", tmp_path / "a.txt", "--out", tmp_path / "shards", "--vocab-size", 512)
    with pytest.raises(SystemExit, match="holds shards, and with them their tokenizer: leave out --tokenizer"):
        upalm("data", "show", "--data", tmp_path / "shards", "--tokenizer", tmp_path / "shards")


def test_a_folder_that_is_being_built_is_refused(upalm, tmp_path, source_text):
    (tmp_path / "a.txt").write_text(source_text)
    words = ("data", "build", tmp_path / "a.txt", "--out", tmp_path / "shards", "--vocab-size", 512)
    with lock.hold(tmp_path / "shards"), pytest.raises(SystemExit, match=f"is in use by process {os.getpid()} on "):
        upalm(*words)
    upalm(*words)
    assert not (tmp_path / "shards" / "lock").exists()


def test_defaults_of_show_are_those_of_training():
    from upalm.cli.data import Show
    from upalm.data.config import DataConfig

    shown, trained = Show(), DataConfig()
    assert shown.data == trained.source
    for name in ("mixture", "seq_len", "batch_size", "layout", "joint_budget", "include", "skip_undecodable"):
        assert getattr(shown, name) == getattr(trained, name), name
