import subprocess
import sys
import tomllib
from pathlib import Path

import jax
import pytest

from upalm import __version__, cli, recipe
from upalm.checkpoint import export
from upalm.model import Decoder, ModelConfig

ROOT = Path(__file__).parent.parent


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["upalm", *arguments])
    cli.main()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("m")
    config = ModelConfig(vocab_size=512, d_model=32, n_layers=2, n_heads=2, d_head=16, d_ff=64, seq_len=128)
    export(folder, Decoder(config, key=jax.random.key(0)), tokenizer, {})
    return str(folder)


def test_infill_keeps_the_text_around_the_gap(monkeypatch, capsys, checkpoint):
    text = "def add(a, b):<extra_id_0>return c"
    run(monkeypatch, "infill", "--checkpoint", checkpoint, "--text", text, "--max-span-tokens", "4")
    out = capsys.readouterr().out
    assert out.startswith("def add(a, b):")
    assert out.endswith("return c\n")


def test_sample_goes_on_from_the_prompt(monkeypatch, capsys, checkpoint):
    arguments = ("sample", "--checkpoint", checkpoint, "--text", "import ", "--mode", "s2s", "--temperature", "1")
    run(monkeypatch, *arguments, "--max-new-tokens", "5")
    first = capsys.readouterr().out
    run(monkeypatch, *arguments, "--max-new-tokens", "5")
    assert first == capsys.readouterr().out
    assert first.startswith("import ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "quickstrt"), "did you mean 'quickstart'"),
        (("run", "palm_tiny", "tinny"), "did you mean 'tiny'"),
        (("run", "palm_tiny"), "has no config None: choose one of tiny"),
        (("run", "absent.py"), "no recipe file"),
        (("infill", "--checkpoint", "/nowhere", "--text", "<extra_id_0>"), "does not exist"),
        (("recipes", "cp"), "cp NAME PLACE"),
    ],
)
def test_mistakes_end_in_one_clear_line(monkeypatch, arguments, message):
    with pytest.raises(SystemExit) as e:
        run(monkeypatch, *arguments)
    assert message in str(e.value)
    assert str(e.value).startswith("error: ")


def test_recipes_are_listed_and_copied_and_the_copy_runs(monkeypatch, capsys, tmp_path):
    run(monkeypatch, "recipes")
    out = capsys.readouterr().out
    assert all(name in out for name in ("palm_tiny", "quickstart"))
    run(monkeypatch, "recipes", "cp", "palm_tiny", str(tmp_path))
    with pytest.raises(SystemExit, match="exists"):
        run(monkeypatch, "recipes", "cp", "palm_tiny", str(tmp_path))
    with pytest.raises(SystemExit) as e:
        run(monkeypatch, "run", str(tmp_path / "palm_tiny.py"), "tiny", "--data.source", "/nowhere")
    assert "no such file or folder" in str(e.value)


def test_cite_agrees_with_citation_cff(monkeypatch, capsys):
    run(monkeypatch, "cite")
    out = capsys.readouterr().out
    cff = (ROOT / "CITATION.cff").read_text()
    for number in ("2210.11399", "2205.05131", "2204.02311"):
        assert number in out and number in cff
    assert f"version: {__version__}\n" in cff and __version__ in out


def test_importing_the_objective_does_not_load_jax():
    code = "import sys, upalm.ul2r, upalm.text; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_every_recipe_config_builds():
    for name in recipe.names():
        for _, config in __import__("runpy").run_path(str(recipe.find(name))).get("CONFIGS", {}).values():
            assert config.n_steps > 0


def test_the_wheel_ships_recipes_and_base(tmp_path):
    pytest.importorskip("hatchling", reason="building a wheel needs hatchling")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path], cwd=ROOT, check=True)
    import zipfile

    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    for wanted in ("upalm/_recipes/quickstart.py", "upalm/assets/palm_tiny/model.safetensors", "upalm/cli.py"):
        assert wanted in names
    assert not [n for n in names if n.startswith("tests/")]


def test_pins_are_versions_without_addresses():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert all("==" in line and "/" not in line for line in lines)
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["name"] == "upalm"
