"""The main job, small: from pretraining to report, interrupted and resumed, on the user's text."""

import json
import os
import re
import runpy
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest
from support.environment import AS_USERS_HAVE
from support.recipe_files import load_recipe

from upalm.checkpoints.folder import export, load_model
from upalm.checkpoints.lineage import CheckpointInfo
from upalm.data import sources
from upalm.evals.bootstrap import Estimate
from upalm.evals.infilling.gaps import Gap
from upalm.evals.infilling.held_out import cut_gaps, describe_repeats, measure_gaps
from upalm.evals.report import Figure
from upalm.model.config import ModelConfig
from upalm.model.palm import Decoder

METRICS = {
    *("causal_bits_per_byte", "infill_bits_per_byte", "left_only_bits_per_byte", "infill_gain"),
    *("infill_gain_shuffled", "suffix_use", "format_ok", "line_exact_match"),
    *(f"{kind}_{name}" for kind in ("new_name", "few_words", "multi_span") for name in ("gain", "gain_shuffled")),
}


def quickstart(folder: Path, base: Path, data: Path, *more: str) -> subprocess.CompletedProcess:
    arguments = ["run", "quickstart", "--out", str(folder), "--checkpoint", str(base), "--data", str(data)]
    sizes = ["--n-steps", "6", "--n-rows", "6", "--n-decoded", "3"]
    command = [sys.executable, "-m", "upalm", *arguments, *sizes, *more]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | AS_USERS_HAVE)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, tokenizer, source_text):
    folder = tmp_path_factory.mktemp("quickstart")
    config = ModelConfig(vocab_size=512, d_model=32, n_layers=2, n_heads=2, d_head=16, d_ff=64, seq_len=512)
    data = {"batch_size": 8, "seq_len": 512, "mixture": "causal"}
    made_by = {"n_steps": 100, "data": data, "start": {}, "seed": 0}
    saw_eos = CheckpointInfo(inputs_eos=True)  # so a base is measured with it, too
    export(folder / "base", Decoder(config, key=jax.random.key(0)), tokenizer, made_by, saw_eos)
    (folder / "my.txt").write_text(source_text)
    return folder


@pytest.mark.parametrize("recipe", ["quickstart", "scaling_open"])
def test_text_that_the_tokenizer_cannot_spell_is_named(inputs, tmp_path, monkeypatch, recipe):
    """As the vocabulary of an import may not, such as SmolLM2's; before anything is trained."""
    tokenizer = load_model(inputs / "base").tokenizer
    encode = type(tokenizer).encode

    def fail(self, text):
        if len(text) > 500:  # a document; the tokenizer is tried on short texts when it is loaded
            raise ValueError("the vocabulary has no piece for the byte 0x01: leave such text out.")
        return encode(self, text)

    monkeypatch.setattr(type(tokenizer), "can_spell", lambda self, text: len(text) <= 500)
    monkeypatch.setattr(type(tokenizer), "encode", fail)
    module, data = load_recipe(recipe), str(inputs / "my.txt")
    if recipe == "quickstart":
        begin = partial(module.main, module.Quickstart(tmp_path / "out", data, inputs / "base"))
    else:
        start = SimpleNamespace(tokenizer=tokenizer)
        begin = partial(module.prepare_measures, module.ScalingOpen(("a", "b"), data, tmp_path / "out"), [start])
    with pytest.raises(ValueError, match=r"my\.txt.* no piece for the byte 0x01: leave such text out, as .* does"):
        begin()


class Training(Exception):
    """Raised in place of training."""


@pytest.fixture
def begin(inputs, tmp_path, monkeypatch):
    """Run the recipe in this process up to its first training, and return that run."""
    module = load_recipe("quickstart")

    def refuse(config, *_, **__):
        raise Training(config)

    monkeypatch.setattr(module, "fit", refuse)
    sizes = {"data": str(inputs / "my.txt"), "checkpoint": inputs / "base", "n_rows": 6, "n_decoded": 3}

    def call(**changes):
        with pytest.raises(Training) as e:
            module.main(module.Quickstart(tmp_path / "out", **sizes | changes))
        return e.value.args[0]

    return call


def test_repeated_text_is_left_out_and_said_so(begin, tmp_path, monkeypatch, capsys, source_text):
    for i in range(30):
        for folder in ("pkg", "build/lib"):
            (tmp_path / "text" / folder).mkdir(parents=True, exist_ok=True)
            (tmp_path / "text" / folder / f"{i}.txt").write_text(source_text[i * 3000 :][:3000])
    (tmp_path / "text" / "README.md").write_text("No text of these.")
    (tmp_path / "text" / "alone.txt").write_text(source_text[-6000:])
    measured = []

    def cut_gaps(documents, *_, **__):
        measured.extend(documents)
        raise Training(None)

    monkeypatch.setattr(sys.modules["quickstart"], "cut_gaps", cut_gaps)
    monkeypatch.setattr(sources, "is_validation", lambda name: name.startswith(("alone", "pkg/1")))
    begin(data=str(tmp_path / "text"))
    out = capsys.readouterr().out
    assert {d.name.partition(":")[0] for d in measured} == {"alone.txt"}
    assert "left out 1 files of other kinds (.md 1)" in out
    assert "11 held-out documents are also in the training text, word for word, and left out: pkg/1.txt" in out


def test_files_are_chosen_by_pattern(begin, tmp_path, source_text):
    for i in range(20):
        (tmp_path / "text").mkdir(exist_ok=True)
        (tmp_path / "text" / f"{i}.py").write_text(source_text[i * 4000 :][:4000])
    with pytest.raises(ValueError, match=re.escape("is read with --include '*.py'.")):
        begin(data=str(tmp_path / "text"))
    config = begin(data=str(tmp_path / "text"), include=("*.py",))
    assert config.data.include == ("*.py",) and config.out.name == "causal"


def test_few_gaps_are_told_before_training(begin, monkeypatch, capsys):
    """Few lines by fewer draws; of new words, few fit."""

    def cut_fewer(*args, **how):
        lines, words = cut_gaps(*args, **how)
        return lines[:30], words

    monkeypatch.setattr(sys.modules["quickstart"], "cut_gaps", cut_fewer)
    begin(seq_len=210, n_rows=40, n_decoded=39)
    [said] = [line for line in capsys.readouterr().out.split("\n") if "Fewer gaps" in line]
    assert re.search(r"30 of 40 single lines, \d+ of 40 new words, so that 30 lines are decoded instead of 39", said)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"n_rows": 1, "n_decoded": 1, "seq_len": 512},
            "single lines: 1 drawn, 1 distinct, expected at least 2 distinct ones",
        ),
        ({"seq_len": 64}, "none of .* gaps .* fits the model's rows"),
        ({"seq_len": 513}, "seq_len is 513, but the base, .*base, has rows of 512 tokens: give --seq-len 512"),
    ],
)
def test_rows_that_do_not_serve_stop_before_training(begin, changes, message):
    with pytest.raises(ValueError, match=message):
        begin(**changes)


def test_a_base_is_pretrained_once_all_is_checked(begin, tmp_path, inputs, monkeypatch):
    small = load_model(inputs / "base")
    shape = {"seq_len": 256, "vocab_size": 512}
    config = sys.modules["quickstart"].recipes.config("palm_tiny", "tiny")
    config = replace(config, start=replace(config.start, model=replace(config.start.model, **shape)))
    monkeypatch.setattr(sys.modules["quickstart"].recipes, "config", lambda *_: config)
    scratch = {"from_scratch": True, "checkpoint": sys.modules["quickstart"].SHIPPED}
    begun = begin(**scratch)
    assert begun.out == tmp_path / "out" / "base" and begun.data.source == str(inputs / "my.txt")
    assert not (tmp_path / "out").exists() and small.model.config.seq_len > 256
    for change, message in (
        ({"seq_len": 257}, "seq_len is 257, but the base, .*out/base, has rows of 256 tokens"),
        ({"seq_len": 64}, "none of .* gaps .* fits"),
        ({"data": "/nowhere.txt"}, "no such file or folder"),
        ({"checkpoint": inputs / "base"}, "checkpoint is .*base, which --from-scratch would not use: leave one"),
    ):
        with pytest.raises(ValueError, match=message):
            begin(**scratch | change)
    (tmp_path / "out" / "ul2r").mkdir(parents=True)
    (tmp_path / "out" / "ul2r" / "notes.md").write_text("mine")
    with pytest.raises(ValueError, match=r"ul2r holds other files, such as notes\.md"):
        begin(**scratch)


@pytest.fixture
def drawn(monkeypatch):
    """The recipe, and measurements that have the published numbers."""
    module, published = load_recipe("quickstart"), Path(__file__).parent.parent / "docs/results/quickstart.json"
    numbers = json.loads(published.read_text("utf-8"))

    def read(estimates):
        return {name: Estimate(**values) for name, values in estimates.items()}

    monkeypatch.setattr(module, "compare", lambda *_: read(numbers["differences"]))
    how = {"infill_mode": "nlg", "left_only_format": "none, causal"}
    models = numbers["models"].items()
    return module, {name: SimpleNamespace(estimates=partial(read, found), **how) for name, found in models}


def test_repeated_gaps_are_told_on_the_screen_and_in_the_report(drawn, tmp_path):
    module, measurements = drawn
    row = Gap(("a", "b"), ("c",))
    repeats = describe_repeats({"line": [row] * 160, "new_name": [row] * 160})
    screen = module.summarise(measurements, 0.002, repeats)
    sentences = screen.split("\n\n")[-1].replace("\n", " ")
    assert sentences.endswith("1 of 160 single lines, 1 of 160 new words are distinct.")
    assert max(map(len, screen.split("\n"))) <= 80
    figures = {name: Figure() for name in module.CAPTIONS}
    module.write_report(tmp_path, "what", measurements, "examples", figures, repeats)
    assert repeats in (tmp_path / "report.html").read_text()


def test_the_figure_tells_gains_from_use_of_the_text_after_a_gap(drawn):
    module, measurements = drawn
    figure = module.draw_metrics(measurements)
    _, gains, use, _ = (
        (axis, [label.get_text().replace("\n", " ") for label in axis.get_yticklabels()]) for axis in figure.axes
    )
    assert gains[0].get_title(loc="left").startswith("Both sides against continuing from the left")
    assert use[0].get_title(loc="left").startswith("Use of the text after the gap")
    assert gains[1] == use[1] == list(module.GAINS.values())
    values = [[bar.lines[0].get_xdata()[0] for bar in axis.containers] for axis, _ in (gains, use)]
    assert min(values[1]) > 0 > min(values[0])


def test_results_have_the_fills_beside_the_missing_text(drawn, tmp_path, monkeypatch):
    module, measurements = drawn
    rows = [Gap(("a", "b"), (f"c{i}",)) for i in range(9)]
    filled = {name: [f"{name}{i}" for i in range(8)] for name in measurements}
    module.save_results(tmp_path / "r.json", measurements, None, {"line": module.list_fills(rows, filled)})
    stored = json.loads((tmp_path / "r.json").read_text())
    assert len(stored["fills"]["line"]) == 8
    assert stored["fills"]["line"][1] == {
        "missing": "c1",
        "filled": {"base": "base1", "causal": "causal1", "ul2r": "ul2r1"},
    }
    tables = runpy.run_path(str(Path(__file__).parent.parent / "docs/results_tables.py"))
    assert tables["quickstart_table"](stored).count("\n") == len(stored["models"]["base"]) + 1


@pytest.mark.slow
def test_quickstart_reports_and_repeats_itself(inputs, tmp_path):
    done = quickstart(tmp_path / "a", inputs / "base", inputs / "my.txt")
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads((tmp_path / "a" / "results.json").read_text())
    assert results["extra_compute"] == pytest.approx(0.03)
    assert results["models"].keys() == {"base", "causal", "ul2r"}
    for metrics in results["models"].values():
        assert metrics.keys() >= METRICS
        for value in metrics.values():
            assert value["low"] <= value["mean"] <= value["high"] and value["n"] > 0
    base, tokenizer, _ = load_model(inputs / "base")
    lines, _ = cut_gaps(sources.load(str(inputs / "my.txt")).validation, tokenizer, 256, 6, inputs_eos=True)
    found = measure_gaps(base, tokenizer, lines, seq_len=256, inputs_eos=True).estimates()["infill_bits_per_byte"]
    assert results["models"]["base"]["infill_bits_per_byte"]["mean"] == pytest.approx(found.mean, rel=1e-4)
    page = (tmp_path / "a" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3 and 'src="http' not in page
    assert len(list((tmp_path / "a").glob("*.png"))) == 3
    fills = results["fills"]
    assert [row["missing"] for row in fills["line"]] == [row.spans[0] for row in lines[:3]] and len(
        fills["new_name"]
    ) == 6
    assert all(row["filled"].keys() == {"base", "causal", "ul2r"} for kind in fills.values() for row in kind)
    _, screen = done.stdout.split("The same extra compute")
    table, sentence = screen.split("\n\n")[1:3]
    assert len(table.split("\n")) == 8 and sentence.startswith("UL2R fills a missing line with")
    assert max(map(len, [*table.split("\n"), *sentence.split("\n")])) <= 80

    again = quickstart(tmp_path / "b", inputs / "base", inputs / "my.txt")
    assert again.returncode == 0
    assert json.loads((tmp_path / "b" / "results.json").read_text()) == results


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--data", "/nowhere.txt"), "no such file or folder"),
        (("--checkpoint", "/nowhere"), "no checkpoint at /nowhere"),
        (("--batch-size", "0"), "batch_size"),
        (("--seq-len", "1024"), "seq_len is 1024, but .* has rows of 512 tokens: give --seq-len 512"),
        (("--n-decoded", "0"), "n_decoded is 0 of n_rows 6, expected at least 1"),
    ],
)
def test_bad_input_stops_before_training(inputs, tmp_path, more, message):
    done = quickstart(tmp_path / "c", inputs / "base", inputs / "my.txt", *more)
    assert done.returncode == (2 if "--n-decoded" in more else 1)  # the parser refuses, or the run
    assert re.search(message, done.stderr)
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "c").exists()
