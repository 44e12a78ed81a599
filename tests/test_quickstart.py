"""The main job, small: from pretraining to report, interrupted and resumed, on the user's text."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from upalm.checkpoint import export
from upalm.evals import infilling, statistics
from upalm.model import Decoder, ModelConfig
from upalm.text import Document

METRICS = {
    *("causal_bits_per_byte", "infill_bits_per_byte", "left_only_bits_per_byte", "infill_gain"),
    *("infill_gain_shuffled", "suffix_use", "format_ok", "line_exact_match"),
}


def quickstart(folder: Path, base: Path, data: Path, *more: str) -> subprocess.CompletedProcess:
    arguments = ["run", "quickstart", "--out", str(folder), "--base", str(base), "--data", str(data)]
    sizes = ["--n-steps", "6", "--n-rows", "6", "--n-decoded", "3"]
    command = [sys.executable, "-m", "upalm", *arguments, *sizes, *more]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, tokenizer, source_text):
    folder = tmp_path_factory.mktemp("quickstart")
    config = ModelConfig(vocab_size=512, d_model=32, n_layers=2, n_heads=2, d_head=16, d_ff=64, seq_len=512)
    made_by = {"n_steps": 100, "data": {"batch_size": 8, "seq_len": 512}}
    export(folder / "base", Decoder(config, key=jax.random.key(0)), tokenizer, made_by)
    (folder / "my.txt").write_text(source_text)
    return folder


@pytest.mark.slow
def test_quickstart_reports_and_repeats_itself(inputs, tmp_path):
    done = quickstart(tmp_path / "a", inputs / "base", inputs / "my.txt")
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads((tmp_path / "a" / "results.json").read_text())
    assert results["extra_compute"] == pytest.approx(0.06)
    assert results["models"].keys() == {"base", "causal", "ul2r"}
    for metrics in results["models"].values():
        assert metrics.keys() >= METRICS
        for value in metrics.values():
            assert value["low"] <= value["mean"] <= value["high"] and value["n"] > 0
    page = (tmp_path / "a" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3 and 'src="http' not in page
    assert len(list((tmp_path / "a").glob("*.png"))) == 3

    again = quickstart(tmp_path / "b", inputs / "base", inputs / "my.txt")
    assert again.returncode == 0
    assert json.loads((tmp_path / "b" / "results.json").read_text()) == results


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--data", "/nowhere.txt"), "no such file or folder"),
        (("--base", "/nowhere"), "no checkpoint at /nowhere"),
        (("--batch-size", "0"), "batch_size"),
    ],
)
def test_bad_input_stops_before_training(inputs, tmp_path, more, message):
    done = quickstart(tmp_path / "c", inputs / "base", inputs / "my.txt", *more)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "c").exists()


# --- The metrics, with models that need no training ---


def documents(source_text):
    return [Document(f"d{i}", source_text[i * 5000 : (i + 1) * 5000]) for i in range(10)]


def test_rows_are_cut_from_the_text(source_text):
    lines = infilling.line_rows(documents(source_text), 30, lambda row: True)
    words = infilling.word_rows(documents(source_text), 30, lambda row: True)
    assert len(lines) == len(words) == 30
    for row in (*lines, *words):
        whole = row.parts[0] + "".join(s + p for s, p in zip(row.spans, row.parts[1:], strict=True))
        assert whole in source_text
    assert all("\n" not in row.spans[0] and row.parts[0].endswith("\n") for row in lines)
    assert all(len(row.spans) == 3 for row in words)
    assert lines[:10] == infilling.line_rows(documents(source_text), 10, lambda row: True)


def test_shuffled_suffixes_change_the_right_side_only(source_text):
    rows = infilling.line_rows(documents(source_text), 20, lambda row: True)
    for row, other in zip(rows, infilling.shuffled_suffixes(rows), strict=True):
        assert (other.parts[0], other.spans) == (row.parts[0], row.spans)
        assert other.parts[1] != row.parts[1]


def test_bits_are_those_of_the_spans_alone(tokenizer, source_text):
    """A model that gives every token the same probability costs log2(V) bits a span token, whatever the format."""
    config = ModelConfig(vocab_size=512, d_model=32, n_layers=1, n_heads=2, d_head=16, d_ff=64, seq_len=1024)
    model = Decoder(config, key=jax.random.key(0))
    uniform = jax.tree.map(lambda x: x * 0, model)
    rows = infilling.line_rows(documents(source_text), 5, lambda row: True)
    n_tokens = sum(len(tokenizer.encode(row.spans[0])) for row in rows)
    for bits in (
        infilling.span_bits(uniform, tokenizer, rows, "nlu"),
        infilling.left_only_bits(uniform, tokenizer, rows, "none", "causal"),
    ):
        assert bits.bits.sum() == pytest.approx(9 * n_tokens, rel=1e-5)
        assert bits.n_bytes.sum() == sum(len(row.spans[0].encode()) for row in rows)


def test_bootstrap_interval_covers():
    """95% of intervals hold the true mean, within three standard errors."""
    import numpy as np

    rng = np.random.default_rng(0)
    inside = [e.low <= 1.0 <= e.high for e in (statistics.mean(rng.normal(1, 1, 80)) for _ in range(300))]
    assert 0.91 < np.mean(inside) < 0.99
