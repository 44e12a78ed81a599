import io
import json
import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from upalm.checkpoints.folder import export
from upalm.cli.infer import Infill
from upalm.inference.decoding import Completion
from upalm.inference.grammar import Border
from upalm.model.config import ModelConfig
from upalm.model.palm import Decoder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("m")
    config = ModelConfig(vocab_size=512, d_model=32, n_layers=2, n_heads=2, d_head=16, d_ff=64, seq_len=128)
    export(folder, Decoder(config, key=jax.random.key(0)), tokenizer, {})
    return str(folder)


def stdin_of(text):
    return io.TextIOWrapper(io.BytesIO(text.encode()), encoding="utf-8")


def test_infill_keeps_the_text_around_the_gap(upalm, monkeypatch, capsys, checkpoint):
    text = "def add(a, b):<extra_id_0>return c"
    for more in ((), ("--stream",), ("--unconstrained",), ("--no-heal",)):
        upalm("infill", "-c", checkpoint, "--text", text, "--max-new-tokens", "4", *more)
        out = capsys.readouterr().out
        assert out.startswith("def add(a, b):")
        assert out.endswith("return c")


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
    """Answers keep the order of the lines over several batches, and parts may hold a sentinel's characters."""
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

    monkeypatch.setattr(sys, "stdin", stdin_of(json.dumps(texts[0]) + "\n\n"))
    upalm("infill", "-c", checkpoint, "--file", "-", *arguments)
    samples = json.loads(capsys.readouterr().out)["samples"]
    assert [s["text"] for s in samples] == [s["text"] for s in found[0]["samples"]]


def test_the_mode_is_that_of_each_text(upalm, capsys, checkpoint):
    for command, text, mode in (
        ("infill", "a<extra_id_0>", "nlg"),
        ("sample", "a<extra_id_0>", "nlg"),
        ("sample", "a", "none"),
    ):
        logprobs = []
        for words in ((), ("--mode", mode), ("--mode", "s2s")):
            upalm(command, "-c", checkpoint, "--text", text, "--json", "--max-new-tokens", "4", *words)
            logprobs.append(json.loads(capsys.readouterr().out)["samples"][0]["logprob"])
        assert logprobs[0] == logprobs[1] != logprobs[2]


def test_equal_lines_of_several_batches_draw_apart(upalm, capsys, checkpoint, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"text": "import <extra_id_0>"}\n' * 17)
    arguments = ("--max-new-tokens", "9", "--temperature", "1", "--json")
    upalm("infill", "-c", checkpoint, "--file", str(tmp_path / "in.jsonl"), *arguments)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 17 and lines[16] not in lines[:16]


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


@pytest.mark.parametrize("text", ["def f():<extra_id_0>", "\tdef f():\r\n\tx = 1\x0c\r\n<extra_id_0>\r\n"])
@pytest.mark.parametrize("more", [(), ("--stream",)], ids=["whole", "stream"])
def test_text_leaves_as_it_came_from_file_and_stdin(upalm, monkeypatch, capsysbinary, checkpoint, tmp_path, text, more):
    """Tabs, line ends and control characters, byte by byte; nothing is added."""
    (tmp_path / "a.py").write_bytes(text.encode())
    outs = []
    for words in (("--file", str(tmp_path / "a.py")), ("--text", "-"), ("--text", text)):
        monkeypatch.setattr(sys, "stdin", stdin_of(text))
        upalm("infill", "-c", checkpoint, "--max-new-tokens", "3", *words, *more)
        outs.append(capsysbinary.readouterr().out)
    before, after = (part.encode() for part in text.split("<extra_id_0>"))
    assert outs[0].startswith(before) and outs[0].endswith(after) and len(set(outs)) == 1


def test_a_terminal_shows_colours_and_control_characters(upalm, monkeypatch, capsys, checkpoint):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    words = ("infill", "-c", checkpoint, "--text", "\ta\x1b[31m\r\n<extra_id_0>", "--max-new-tokens", "3")
    for no_colour in ("", "1"):
        monkeypatch.setenv("NO_COLOR", no_colour)
        upalm(*words)
        out = capsys.readouterr().out
        assert out.startswith("\ta\\x1b[31m\\r\n") and out.endswith("\n")
        assert ("\x1b[1;32m" in out) == (not no_colour)


def test_escapes_of_stop_are_those_of_interactive(upalm, monkeypatch, capsys, checkpoint):
    monkeypatch.setattr(sys, "stdin", io.StringIO("a\\tb\\\\n<extra_id_0>\n"))
    given = []
    answer = Infill.answer
    monkeypatch.setattr(
        Infill, "answer", lambda self, m, texts, c, r: given.append((texts, c)) or answer(self, m, texts, c, r)
    )
    upalm("infill", "-c", checkpoint, "--interactive", "--max-new-tokens", "1", "--stop", r"\n", "--stop", r"\t\\n")
    [(texts, config)] = given
    assert texts == ["a\tb\\n<extra_id_0>"] and config.stop == ("\n", "\t\\n")


def test_a_stop_string_written_as_an_escape_stops(upalm, capsys, checkpoint, monkeypatch):
    """Every token of this model is a new line."""
    monkeypatch.setattr("upalm.inference.generation.decode", write_newlines)
    upalm("infill", "-c", checkpoint, "--text", "a<extra_id_0>b", "--stop", r"\n", "--json", "--no-heal")
    [sample] = json.loads(capsys.readouterr().out)["samples"]
    assert sample["spans"] == [""] and sample["finish_reasons"] == ["stop"]


def write_newlines(model, tasks, config, rules, padding):
    spans = rules.spans(Border())
    newline = next(t for t in range(3, 400) if spans.stopped[spans.table[spans.start, t]])
    tokens = np.array([rules.symbols.sentinels[0], newline, newline, rules.symbols.eos_id])
    return [[Completion(tokens, np.zeros(4), True)] for _ in tasks]


def test_attention_is_an_option_of_both_commands(upalm, capsys, checkpoint):
    for command, text in (("infill", "import os, <extra_id_0>\n"), ("sample", "import os, sys")):
        logprobs = []
        for attention in ("prefix", "causal"):
            upalm(
                command, "-c", checkpoint, "--text", text, "--attention", attention, "--json", "--max-new-tokens", "4"
            )
            logprobs.append(json.loads(capsys.readouterr().out)["samples"][0]["logprob"])
        assert logprobs[0] != pytest.approx(logprobs[1], abs=1e-4)


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ("caf\xe9 <extra_id_0>".encode("latin-1"), "a.txt", r"a.txt is not UTF-8: byte 0xe9 in line 1. Convert it"),
        (b'{"text": "a<extra_id_0>"}\n{"text": "\xe9"}', "a.jsonl", r"a.jsonl, line 2 is not UTF-8: byte 0xe9"),
        (b'{"text": "a \\ud83d<extra_id_0>"}', "a.jsonl", r"line 1: the text has the lone surrogate U\+D83D"),
        (b"[" * 100_000, "a.jsonl", r"line 1: not JSON"),
    ],
)
def test_files_that_are_no_text_are_named(upalm, checkpoint, tmp_path, content, name, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SystemExit, match=message):
        upalm("infill", "-c", checkpoint, "--file", str(tmp_path / name), "--max-new-tokens", "1")


def test_a_byte_order_mark_of_json_lines_is_dropped(upalm, capsys, checkpoint, tmp_path):
    (tmp_path / "a.JSONL").write_bytes(b'\xef\xbb\xbf{"text": "a<extra_id_0>b"}\n')
    upalm("infill", "-c", checkpoint, "--file", str(tmp_path / "a.JSONL"), "--json", "--max-new-tokens", "1")
    assert json.loads(capsys.readouterr().out)["samples"][0]["text"].startswith("a")


def test_interactive_goes_on_after_a_mistake(upalm, monkeypatch, capsys, checkpoint):
    monkeypatch.setattr(sys, "stdin", io.StringIO("no gap\na\\n<extra_id_0>b\n"))
    upalm("infill", "-c", checkpoint, "--interactive", "--max-new-tokens", "2")
    out, err = capsys.readouterr()
    assert out.startswith("a\n") and out.endswith("b\n")
    assert "error: the text has no gap" in err


def test_interactive_names_what_is_not_utf8(upalm, monkeypatch, checkpoint):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="utf-8"))
    with pytest.raises(SystemExit, match="^error: what was typed is not UTF-8: byte 0xe9"):
        upalm("infill", "-c", checkpoint, "--interactive")


def test_infill_says_once_that_a_model_never_saw_a_gap(upalm, capsys, tmp_path, tokenizer):
    config = ModelConfig(vocab_size=512, d_model=32, n_layers=1, n_heads=2, d_head=16, d_ff=64, seq_len=128)
    export(tmp_path / "m", Decoder(config, key=jax.random.key(0)), tokenizer, {"data": {"mixture": "causal"}})
    description = json.loads((tmp_path / "m" / "config.json").read_text())
    assert description["gaps_trained"] is None  # as in folders of before
    del description["gaps_trained"]
    (tmp_path / "m" / "config.json").write_text(json.dumps(description))
    (tmp_path / "m" / "manifest.json").unlink()
    (tmp_path / "in.jsonl").write_text('{"text": "a<extra_id_0>"}\n' * 17 + '{"text": "a"}\n')
    for words, n_warnings in (
        (("infill", "--text", "a<extra_id_0>b"), 1),
        (("infill", "--text", "a<extra_id_0>b", "--stream"), 1),
        (("sample", "--text", "a<extra_id_0>"), 1),
        (("sample", "--text", "a<extra_id_0>", "--stream"), 1),
        (("sample", "--file", str(tmp_path / "in.jsonl")), 1),
        (("sample", "--text", "a"), 0),
    ):
        upalm(*words, "-c", str(tmp_path / "m"), "--max-new-tokens", "2")
        assert capsys.readouterr().err.count("never trained on gaps") == n_warnings, words


def test_a_file_of_json_lines_without_one_is_named(upalm, monkeypatch, checkpoint, tmp_path):
    (tmp_path / "a.jsonl").write_text("\n \n")
    with pytest.raises(SystemExit, match=r"^error: .*a\.jsonl is empty: there is nothing to continue or to fill"):
        upalm("infill", "-c", checkpoint, "--file", str(tmp_path / "a.jsonl"))
    monkeypatch.setattr(sys, "stdin", stdin_of(""))
    with pytest.raises(SystemExit, match="^error: standard input is empty"):
        upalm("infill", "-c", checkpoint, "--file", "-")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("infill", "-c", "/nowhere", "--text", "<extra_id_0>"), "does not exist"),
        (("infill", "-c", "/dev/null", "--text", "<extra_id_0>"), "it is a file, expected the folder of a run"),
        (("infill", "-c", "/nowhere"), "one of --text, --file and --interactive"),
        (("infill", "-c", "/nowhere", "--text", "<extra_id_0>", "--stream", "--json"), "leave out --json"),
        (("infill", "-c", "/nowhere", "--file", "-", "--stream"), "leave out --file with JSON lines"),
        (("sample", "-c", "/nowhere", "--text", "None"), "no checkpoint at /nowhere"),
        (("sample", "-c", "/nowhere", "--file", "/tmp"), "/tmp is a folder, expected a file"),
        (("sample", "-c", "/nowhere", "--text", "a", "--num-samples", "3"), "num_samples is 3 and the temperature 0"),
        (("infill", "-c", "/nowhere", "--text", "<extra_id_0>", "--mesh", "2", "4"), "2 x 4 needs 8 devices"),
        (("sample", "-c", "/nowhere", "--file", "/nowhere.txt"), "no file /nowhere.txt"),
        (("sample", "-c", "/nowhere", "--text", "a", "--temperature", "nan"), "temperature is nan, expected 0"),
        (("sample", "-c", "/nowhere", "--text", "a", "--min-p", "nan"), "min_p is nan, expected a number from 0"),
        (("sample", "-c", "/nowhere", "--text", "a", "--top-p", "nan"), "top_p is nan, expected a number above 0"),
        (("sample", "-c", "/nowhere", "--text", "a", "--seed", "-1"), "seed is -1"),
        (("sample", "-c", "/nowhere", "--text", "a", "--stop", ""), "a stop string is empty"),
    ],
)
def test_mistakes_end_in_one_clear_line(upalm, words, message):
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        upalm(*words)


def test_one_command_fills_a_gap_after_install(upalm, capsys):
    """Without a checkpoint, `infill` opens the shipped model that saw gaps: no warning, and a whole program."""
    upalm("infill", "--text", "def add(a, b):\n    <extra_id_0>\n\nprint(add(1, 2))\n")
    printed = capsys.readouterr()
    assert "warning" not in printed.err
    assert printed.out.startswith("def add(a, b):\n    ") and printed.out.endswith("\n\nprint(add(1, 2))\n")
