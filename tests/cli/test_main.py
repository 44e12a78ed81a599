import io
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import jax
import pytest

from upalm import __version__
from upalm.checkpoints.folder import export
from upalm.cli import main
from upalm.model.config import ModelConfig
from upalm.model.palm import Decoder

ROOT = Path(__file__).parents[2]


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["upalm", *arguments])
    main.main()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("m")
    config = ModelConfig(vocab_size=512, d_model=32, n_layers=2, n_heads=2, d_head=16, d_ff=64, seq_len=128)
    export(folder, Decoder(config, key=jax.random.key(0)), tokenizer, {})
    return str(folder)


def test_infill_keeps_the_text_around_the_gap(monkeypatch, capsys, checkpoint):
    text = "def add(a, b):<extra_id_0>return c"
    for more in ((), ("--stream",), ("--unconstrained",)):
        run(monkeypatch, "infill", "-c", checkpoint, "--text", text, "--max-new-tokens", "4", *more)
        out = capsys.readouterr().out
        assert out.startswith("def add(a, b):")
        assert "return c\n" in out


def test_sample_goes_on_from_the_prompt(monkeypatch, capsys, checkpoint):
    arguments = ("sample", "--checkpoint", checkpoint, "--text", "import ", "--mode", "s2s", "--temperature", "1")
    outs = []
    for more in ((), (), ("--stream",)):
        run(monkeypatch, *arguments, "--max-new-tokens", "5", *more)
        outs.append(capsys.readouterr().out)
    assert outs[0] == outs[1] == outs[2]
    assert outs[0].startswith("import ")


def test_programs_are_compiled_by_the_first_call_alone(checkpoint, tmp_path):
    command = ("infill", "-c", checkpoint, "--text", "a<extra_id_0>b", "--max-new-tokens", "4")
    env = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_COMPILATION_CACHE", "JAX_PERSISTENT_CACHE"))}
    env |= {"XDG_CACHE_HOME": str(tmp_path), "JAX_LOG_COMPILES": "1"}
    done = [
        subprocess.run([sys.executable, "-m", "upalm", *command], env=env, capture_output=True, text=True)
        for _ in range(2)
    ]
    assert done[0].stdout == done[1].stdout != ""
    hit = "Persistent compilation cache hit for 'jit_advance'"
    assert hit not in done[0].stderr and hit in done[1].stderr
    assert list((tmp_path / "upalm" / "jax").iterdir())


def test_json_lines_in_and_out(monkeypatch, capsys, checkpoint, tmp_path):
    """More than one batch, in order; texts, and parts that hold a sentinel's characters."""
    texts = [{"text": f"x{i}<extra_id_0>y"} for i in range(17)] + [{"parts": ["a <extra_id_0> b", "c"]}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(t) + "\n" for t in texts))
    arguments = ("--max-new-tokens", "3", "--num-samples", "2", "--temperature", "1", "--json")
    run(monkeypatch, "infill", "-c", checkpoint, "--file", str(tmp_path / "in.jsonl"), *arguments)
    found = [json.loads(line) for line in capsys.readouterr().out.split("\n")[:-1]]
    assert len(found) == 18
    for i, record in enumerate(found[:17]):
        assert len(record["samples"]) == 2
        for sample in record["samples"]:
            assert sample["text"] == f"x{i}{sample['spans'][0]}y"
            assert sample["format_ok"] and len(sample["logprobs"]) == 1
        assert record["samples"][0]["logprob"] >= record["samples"][1]["logprob"]
    assert all(s["text"].startswith("a <extra_id_0> b") for s in found[17]["samples"])

    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(texts[0]) + "\n\n"))
    run(monkeypatch, "infill", "-c", checkpoint, "--file", "-", *arguments)
    samples = json.loads(capsys.readouterr().out)["samples"]
    assert [s["text"] for s in samples] == [s["text"] for s in found[0]["samples"]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "in.jsonl, line 2: not JSON"),
        ('{"txt": "a"}', "in.jsonl, line 2: expected"),
        ('{"parts": [1]}', "in.jsonl, line 2: expected"),
        ('{"text": "no gap"}', "in.jsonl, line 2: the text has no gap"),
        ('{"text": "<extra_id_1>"}', "in.jsonl, line 2: gaps are numbered"),
        (json.dumps({"text": "word " * 500 + "<extra_id_0>"}), "in.jsonl, line 2: text of .* shorten it by"),
    ],
)
def test_a_bad_line_is_named_and_those_before_it_are_done(monkeypatch, capsys, checkpoint, tmp_path, line, message):
    (tmp_path / "in.jsonl").write_text('{"text": "a<extra_id_0>"}\n' + line + '\n{"text": "b<extra_id_0>"}\n')
    with pytest.raises(SystemExit) as e:
        run(monkeypatch, "infill", "-c", checkpoint, "--file", str(tmp_path / "in.jsonl"), "--json")
    assert re.search(message, str(e.value))
    assert len(capsys.readouterr().out.split("\n")[:-1]) == 1


def test_text_from_a_file_and_standard_input_is_the_same(monkeypatch, capsys, checkpoint, tmp_path):
    (tmp_path / "a.py").write_text("def f():<extra_id_0>")
    run(monkeypatch, "infill", "-c", checkpoint, "--file", str(tmp_path / "a.py"), "--max-new-tokens", "3")
    first = capsys.readouterr().out
    monkeypatch.setattr(sys, "stdin", io.StringIO("def f():<extra_id_0>"))
    run(monkeypatch, "infill", "-c", checkpoint, "--text", "-", "--max-new-tokens", "3")
    assert capsys.readouterr().out == first


def test_interactive_goes_on_after_a_mistake(monkeypatch, capsys, checkpoint):
    monkeypatch.setattr(sys, "stdin", io.StringIO("no gap\na\\n<extra_id_0>b\n"))
    run(monkeypatch, "infill", "-c", checkpoint, "--interactive", "--max-new-tokens", "2")
    out, err = capsys.readouterr()
    assert out.startswith("a\n") and out.endswith("b\n")
    assert "error: the text has no gap" in err


def test_infill_says_once_that_a_model_never_saw_a_gap(monkeypatch, capsys, tmp_path, tokenizer):
    config = ModelConfig(vocab_size=512, d_model=32, n_layers=1, n_heads=2, d_head=16, d_ff=64, seq_len=128)
    export(tmp_path / "m", Decoder(config, key=jax.random.key(0)), tokenizer, {"data": {"mixture": "causal"}})
    description = json.loads((tmp_path / "m" / "config.json").read_text())
    assert description["gaps_trained"] is None  # as in folders of before
    del description["gaps_trained"]
    (tmp_path / "m" / "config.json").write_text(json.dumps(description))
    (tmp_path / "m" / "manifest.json").unlink()
    run(monkeypatch, "infill", "-c", str(tmp_path / "m"), "--text", "a<extra_id_0>b", "--max-new-tokens", "2")
    assert capsys.readouterr().err.count("never trained on gaps") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "quickstrt"), "did you mean 'quickstart'"),
        (("run", "palm_tiny", "tinny"), "did you mean 'tiny'"),
        (("run", "absent.py"), "no recipe file"),
        (("infill", "--checkpoint", "/nowhere", "--text", "<extra_id_0>"), "does not exist"),
        (("infill", "--checkpoint", "/nowhere"), "one of --text, --file and --interactive"),
        (("infill", "-c", "/nowhere", "--text", "<extra_id_0>", "--stream", "--json"), "leave out --json"),
        (("infill", "-c", "/nowhere", "--text", "<extra_id_0>", "--mesh", "2", "4"), "2 x 4 needs 8 devices"),
        (("sample", "-c", "/nowhere", "--file", "/nowhere.txt"), "no file /nowhere.txt"),
        (("rum",), "no command 'rum': did you mean 'run'?"),
        (("data", "buld"), "no command 'data buld': did you mean 'build'?"),
        (("run",), "the recipes are finetune"),
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
    code = "import sys, upalm.ul2r, upalm.data.sources; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_wheel_ships_recipes_and_base(tmp_path):
    pytest.importorskip("hatchling", reason="building a wheel needs hatchling")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path], cwd=ROOT, check=True)
    import zipfile

    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    for wanted in ("upalm/_recipes/quickstart.py", "upalm/assets/palm_tiny/model.safetensors", "upalm/cli/main.py"):
        assert wanted in names
    assert not [n for n in names if n.startswith("tests/")]


def test_pins_are_versions_without_addresses():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert all("==" in line and "/" not in line for line in lines)
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["name"] == "upalm"


def test_a_suite_is_run_and_its_holes_are_named(monkeypatch, capsys, checkpoint, tmp_path):
    data = tmp_path / "data"
    (data / "nlp").mkdir(parents=True)
    row = {"query": "a b", "choices": ["c", "d"], "gold": 1}
    (data / "nlp/piqa.jsonl").write_text(f"{json.dumps(row)}\n" * 3)
    words = ("eval", "-c", checkpoint, "--data", str(data), "--suite", "english26", "--out", str(tmp_path / "out"))
    run(monkeypatch, *words, "--limit", "2")
    out = capsys.readouterr().out
    assert "2 of 1838" in out and "of 1 of 26 tasks" in out and "not run: rte: no superglue/RTE/val.jsonl" in out
    found = json.loads((tmp_path / "out/english26/results.json").read_text())
    assert found["fingerprint"]["attention"] == "prefix" and found["average"]["is_whole"] is False
    assert found["compute"]["stages"] is None  # an import does not say
    assert found["tasks"]["piqa"]["printed"] == {"palm": 82.3, "u_palm": 84.1}
    with pytest.raises(SystemExit, match="another evaluation"):
        run(monkeypatch, *words, "--attention", "causal")
    with pytest.raises(SystemExit, match="is no folder"):
        run(monkeypatch, *words[:4], "nowhere", *words[5:])
    with pytest.raises(SystemExit, match="did you mean 'english26'"):
        run(monkeypatch, *words[:6], "english", *words[7:])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--limit", "3", "--mode", "nlu"), "suite held_out has no use for --limit, --mode"),
        (("--suite", "infilling", "--attention", "causal"), "suite infilling has no use for --attention"),
        (("--suite", "mmlu", "--limit", "-1"), "--limit is -1, expected at least 1"),
    ],
)
def test_what_a_suite_would_ignore_is_refused(monkeypatch, checkpoint, tmp_path, words, message):
    with pytest.raises(SystemExit, match=message):
        run(monkeypatch, "eval", "-c", checkpoint, "--data", str(tmp_path), *words)


def test_the_infilling_suite_goes_on_where_it_was(monkeypatch, capsys, checkpoint, tmp_path):
    data = tmp_path / "data"
    (data / "nlp").mkdir(parents=True)
    text = " ".join("the cat sat on the mat and then it ran".split() * 3)
    (data / "nlp/lambada_openai.jsonl").write_text(f"{json.dumps({'text': text})}\n" * 2)
    words = ("eval", "-c", checkpoint, "--data", str(data), "--suite", "infilling", "--out", str(tmp_path / "out"))
    run(monkeypatch, *words)
    out = capsys.readouterr().out
    assert "span_bits_per_byte" in out and "not run: humaneval_single_line: no humaneval_infilling/" in out
    results = json.loads((tmp_path / "out/infilling/results.json").read_text())
    assert "prose_1_span" in results["tasks"]
    asked = []
    monkeypatch.setattr("upalm.evals.infilling.prose.evaluate", lambda m, t, rows, mode: asked.append(rows) or ({}, 0))
    run(monkeypatch, *words)
    again = json.loads((tmp_path / "out/infilling/results.json").read_text())
    assert again["tasks"]["prose_1_span"] == results["tasks"]["prose_1_span"]
    assert all(len(row.spans) == 3 for rows in asked for row in rows)  # what did not fit, if anything
    with pytest.raises(SystemExit, match="another evaluation"):
        run(monkeypatch, *words, "--mode", "nlu")
