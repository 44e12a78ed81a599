import io
import json
import os
import re
import subprocess
import sys

import jax
import pytest

from upalm.checkpoints.folder import export
from upalm.model.config import ModelConfig
from upalm.model.palm import Decoder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("m")
    config = ModelConfig(vocab_size=512, d_model=32, n_layers=2, n_heads=2, d_head=16, d_ff=64, seq_len=128)
    export(folder, Decoder(config, key=jax.random.key(0)), tokenizer, {})
    return str(folder)


def test_infill_keeps_the_text_around_the_gap(upalm, monkeypatch, capsys, checkpoint):
    text = "def add(a, b):<extra_id_0>return c"
    for more in ((), ("--stream",), ("--unconstrained",)):
        upalm("infill", "-c", checkpoint, "--text", text, "--max-new-tokens", "4", *more)
        out = capsys.readouterr().out
        assert out.startswith("def add(a, b):")
        assert "return c\n" in out


def test_sample_goes_on_from_the_prompt(upalm, capsys, checkpoint):
    arguments = ("sample", "--checkpoint", checkpoint, "--text", "import ", "--mode", "s2s", "--temperature", "1")
    outs = []
    for more in ((), (), ("--stream",)):
        upalm(*arguments, "--max-new-tokens", "5", *more)
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


def test_json_lines_in_and_out(upalm, monkeypatch, capsys, checkpoint, tmp_path):
    """More than one batch, in order; texts, and parts that hold a sentinel's characters."""
    texts = [{"text": f"x{i}<extra_id_0>y"} for i in range(17)] + [{"parts": ["a <extra_id_0> b", "c"]}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(t) + "\n" for t in texts))
    arguments = ("--max-new-tokens", "3", "--num-samples", "2", "--temperature", "1", "--json")
    upalm("infill", "-c", checkpoint, "--file", str(tmp_path / "in.jsonl"), *arguments)
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
    upalm("infill", "-c", checkpoint, "--file", "-", *arguments)
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
def test_a_bad_line_is_named_and_those_before_it_are_done(upalm, capsys, checkpoint, tmp_path, line, message):
    (tmp_path / "in.jsonl").write_text('{"text": "a<extra_id_0>"}\n' + line + '\n{"text": "b<extra_id_0>"}\n')
    with pytest.raises(SystemExit) as e:
        upalm("infill", "-c", checkpoint, "--file", str(tmp_path / "in.jsonl"), "--json")
    assert re.search(message, str(e.value))
    assert len(capsys.readouterr().out.split("\n")[:-1]) == 1


def test_text_from_a_file_and_standard_input_is_the_same(upalm, monkeypatch, capsys, checkpoint, tmp_path):
    (tmp_path / "a.py").write_text("def f():<extra_id_0>")
    upalm("infill", "-c", checkpoint, "--file", str(tmp_path / "a.py"), "--max-new-tokens", "3")
    first = capsys.readouterr().out
    monkeypatch.setattr(sys, "stdin", io.StringIO("def f():<extra_id_0>"))
    upalm("infill", "-c", checkpoint, "--text", "-", "--max-new-tokens", "3")
    assert capsys.readouterr().out == first


def test_interactive_goes_on_after_a_mistake(upalm, monkeypatch, capsys, checkpoint):
    monkeypatch.setattr(sys, "stdin", io.StringIO("no gap\na\\n<extra_id_0>b\n"))
    upalm("infill", "-c", checkpoint, "--interactive", "--max-new-tokens", "2")
    out, err = capsys.readouterr()
    assert out.startswith("a\n") and out.endswith("b\n")
    assert "error: the text has no gap" in err


def test_infill_says_once_that_a_model_never_saw_a_gap(upalm, capsys, tmp_path, tokenizer):
    config = ModelConfig(vocab_size=512, d_model=32, n_layers=1, n_heads=2, d_head=16, d_ff=64, seq_len=128)
    export(tmp_path / "m", Decoder(config, key=jax.random.key(0)), tokenizer, {"data": {"mixture": "causal"}})
    description = json.loads((tmp_path / "m" / "config.json").read_text())
    assert description["gaps_trained"] is None  # as in folders of before
    del description["gaps_trained"]
    (tmp_path / "m" / "config.json").write_text(json.dumps(description))
    (tmp_path / "m" / "manifest.json").unlink()
    upalm("infill", "-c", str(tmp_path / "m"), "--text", "a<extra_id_0>b", "--max-new-tokens", "2")
    assert capsys.readouterr().err.count("never trained on gaps") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("infill", "-c", "/nowhere", "--text", "<extra_id_0>"), "does not exist"),
        (("infill", "-c", "/nowhere"), "one of --text, --file and --interactive"),
        (("infill", "-c", "/nowhere", "--text", "<extra_id_0>", "--stream", "--json"), "leave out --json"),
        (("infill", "-c", "/nowhere", "--text", "<extra_id_0>", "--mesh", "2", "4"), "2 x 4 needs 8 devices"),
        (("sample", "-c", "/nowhere", "--file", "/nowhere.txt"), "no file /nowhere.txt"),
    ],
)
def test_mistakes_end_in_one_clear_line(upalm, words, message):
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        upalm(*words)
