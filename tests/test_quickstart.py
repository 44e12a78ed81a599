"""The main job, small: from pretraining to report, interrupted and resumed, on the user's text."""

import json
import os
import re
import subprocess
import sys
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
from upalm.evals.infilling.held_out import cut_gaps, measure_gaps
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
        (("--seq-len", "1024"), "seq_len is 1024, but .* was made for rows of 512 tokens: give --seq-len 512"),
        (("--n-decoded", "0"), "n_decoded is 0 of n_rows 6, expected at least 1"),
    ],
)
def test_bad_input_stops_before_training(inputs, tmp_path, more, message):
    done = quickstart(tmp_path / "c", inputs / "base", inputs / "my.txt", *more)
    assert done.returncode == (2 if "--n-decoded" in more else 1)  # the parser refuses, or the run
    assert re.search(message, done.stderr)
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "c").exists()
