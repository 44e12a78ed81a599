import pytest


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run",), "expected a recipe or --from FOLDER; the recipes are finetune"),
        (("run", "--out", "x", "palm_tiny", "tiny"), "options come after RECIPE CONFIG: .* palm_tiny tiny --out x"),
        (("run", "--from", "x", "palm_tiny", "tiny"), "--from x and the recipe 'palm_tiny tiny' are two runs"),
        (("run", "--out", "x"), "--out x is another folder for the run that --from FOLDER names"),
        (("run", "absent.py"), "no recipe file absent.py"),
        (("run", "ul2r_tiny"), "upalm run ul2r_tiny needs a config before its options: choose one of ul2r, causal"),
        (("run", "ul2r_tiny", "--out", "x"), "upalm run ul2r_tiny needs a config before its options"),
        (("run", "palm_tiny", "tiny", "--data", "/nowhere"), "no such file or folder: '/nowhere'"),
        (("run", "ul2r_tiny", "causal", "-c", "/nowhere"), "no checkpoint at /nowhere"),
    ],
)
def test_a_mistake_in_a_run_is_one_line(upalm, words, message):
    with pytest.raises(SystemExit, match=f"^error: {message}"):
        upalm(*words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--data.mixture", "nope"), "error: --data.mixture: no mixture 'nope'"),
        (("--data.mixtur", "ul2"), "Perhaps you meant:\n    --data.mixture STR"),
        (("--n-steps", "x"), "error: --n-steps: expected a whole number, got 'x'"),
    ],
)
def test_a_mistake_in_a_recipes_option_names_it(upalm, capsys, words, message):
    with pytest.raises(SystemExit) as e:
        upalm("run", "palm_tiny", "tiny", *words)
    said = capsys.readouterr().err
    assert e.value.code == 2 and message in said and "dummy" not in said
    assert said.endswith("`upalm run palm_tiny tiny --help` lists the options.\n")


ONE_CONFIG = """
from pathlib import Path
from support.runs import tiny_config
from upalm.training import recipes
CONFIGS = {"only": ("Mine.", tiny_config(Path("run")))}
if __name__ == "__main__":
    print(recipes.choose(CONFIGS, __doc__).n_steps)
"""


def test_a_single_config_needs_no_name(upalm, capsys, tmp_path):
    (tmp_path / "mine.py").write_text(ONE_CONFIG)
    for words in ((), ("only",)):
        upalm("run", tmp_path / "mine.py", *words, "--n-steps", 7)
        assert capsys.readouterr().out == "7\n"


def test_help_of_a_recipe_keeps_its_lines(upalm, capsys):
    with pytest.raises(SystemExit):
        upalm("run", "ul2r_tiny", "causal", "--help")
    out = capsys.readouterr().out
    assert "\nCommand:  upalm run ul2r_tiny ul2r\nHardware: 2 CPU" in out
    assert "\nusage: upalm run ul2r_tiny causal " in out
    assert "(default: upalm/assets/palm_tiny)" in " ".join(out.replace("│", " ").split())
    assert "--data STR, --data.source STR" in out and "-c PATH, --start.checkpoint PATH" in out


def test_help_of_a_recipe_without_config_lists_configs(upalm, capsys):
    with pytest.raises(SystemExit) as e:
        upalm("run", "ul2r_tiny", "--help")
    assert not e.value.code and "\n  causal     The control" in capsys.readouterr().out


def test_recipe_that_knows_this_machine_needs_no_config(upalm, capsys, tmp_path):
    with pytest.raises(SystemExit, match="^error: no checkpoint at /nowhere"):
        upalm("run", "ul2r", "--init", "/nowhere", "--data", "stdlib", "--out", tmp_path / "run")
    with pytest.raises(SystemExit, match=r"^error: upalm run ul2r has no config 'gpu2': did you mean 'gpu24'"):
        upalm("run", "ul2r", "gpu2", "--init", "/nowhere")
    with pytest.raises(SystemExit) as e:
        upalm("run", "ul2r", "--help")
    assert not e.value.code and "\n  gpu24      24 GB: 4,000 steps" in capsys.readouterr().out


@pytest.mark.parametrize("recipe", ["quickstart", "scaling_open", "scaling_tiny"])
def test_help_of_a_recipe_with_own_settings_names_it(upalm, capsys, recipe):
    with pytest.raises(SystemExit):
        upalm("run", recipe, "--help")
    out = capsys.readouterr().out
    assert f"\nusage: upalm run {recipe} [-h]" in out and "\nExpected:" in out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"def f(:", "no Python: invalid syntax"),
        (b"\xff", "no Python: 'utf-8' codec can't decode byte 0xff"),
        (b"CONFIGS = 3", "CONFIGS is 3, expected a dict"),
    ],
)
@pytest.mark.parametrize("command", ["run", "plan"])
def test_a_file_that_is_no_recipe_is_refused(upalm, tmp_path, command, content, message):
    (tmp_path / "mine.py").write_bytes(content)
    with pytest.raises(SystemExit, match=f"^error: .*mine.py.*{message}"):
        upalm(command, tmp_path / "mine.py")
