import pytest

from upalm.training import recipes


def test_recipes_are_listed_with_their_configs(upalm, capsys):
    upalm("recipes")
    out = capsys.readouterr().out
    assert all(name in out for name in recipes.names())
    assert "    tiny       A 1.2M-parameter PaLM" in out


def test_a_recipe_is_shown_and_copied_and_the_copy_runs(upalm, capsys, tmp_path):
    upalm("recipes", "show", "palm_tiny")
    shown = capsys.readouterr().out
    upalm("recipes", "cp", "palm_tiny", tmp_path)
    assert (tmp_path / "palm_tiny.py").read_text() == shown
    upalm("recipes", "cp", tmp_path / "palm_tiny.py", tmp_path / "again.py")
    with pytest.raises(SystemExit, match="exists"):
        upalm("recipes", "cp", "palm_tiny", tmp_path)
    with pytest.raises(SystemExit, match="no such file or folder"):
        upalm("run", tmp_path / "palm_tiny.py", "tiny", "--data", "/nowhere")
