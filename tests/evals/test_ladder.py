"""Ladders: what may be a start, and results that are of one set of measures."""

import json
from contextlib import closing
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from support.runs import MODEL

from upalm.checkpoints.folder import describe
from upalm.checkpoints.lineage import CheckpointInfo, Stage
from upalm.checkpoints.manager import Checkpoints
from upalm.data.readers import Document
from upalm.data.sources import TextSource
from upalm.data.tokenizer import SentencePiece
from upalm.evals.ladder import Measures, load_held_out, open_starts
from upalm.evals.suites import find_suite
from upalm.evals.tasks import synthetic
from upalm.model.palm import Decoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer, source_text):
    """A causal run of 2 x 16 tokens per step; without weights an import, and some that do not fit."""
    folder = tmp_path_factory.mktemp("starts")

    def write(name, words=tokenizer, mixture="causal", start=None, **changes):
        data = {"mixture": mixture, "batch_size": 2, "seq_len": 16}
        record = (
            {"n_steps": 7, "start": start or {}, "seed": 0, "data": data} if name != "imported" else {"imported": "a"}
        )
        info = CheckpointInfo(gaps_trained=mixture != "causal")
        describe(folder / name, replace(MODEL, **changes), words, record, info)

    for name in ("run", "imported"):
        write(name)
    with closing(Checkpoints(folder / "run", keep=4)) as checkpoints:
        for step in (0, 2, 4, 5):
            checkpoints.save(step, Decoder(MODEL, key=jax.random.key(0)), {"count": jnp.zeros(())})
    write("longer", seq_len=256, rope_theta=1e5, compute_dtype="bfloat16")
    write("wider", d_ff=80)
    write("other words", SentencePiece.train([source_text[: len(source_text) // 2]], 512))
    write("ul2r", mixture="ul2r")
    write("ul2r of imported", mixture="ul2r", start={"checkpoint": str(folder / "imported")})
    write("short", seq_len=32)
    return folder


def test_starts_are_in_the_order_of_their_tokens(folder):
    starts = open_starts([f"{folder}/imported:1e2", f"{folder}/run/steps/5", f"{folder}/run/steps/2"], 64)
    assert [(s.folder.name, s.n_tokens) for s in starts] == [("2", 64), ("imported", 100), ("5", 160)]
    assert starts[1].stages == [Stage("causal", 100, 0)]


def test_stages_of_pretraining_may_change_rows_and_precision(folder):
    assert len(open_starts([f"{folder}/longer", f"{folder}/imported:2e12"], 64)) == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["run/steps/2"], "starts: 1 given, expected two or more checkpoints"),
        (["run/steps/2", "imported"], "imported does not say what it was pretrained on: give .*/imported:2e12"),
        (["run/steps/2", "run/steps/4:2e12"], "steps/4 was trained on 128 tokens, not 2,000,000,000,000"),
        (["run/steps/2", "imported:many"], "start '.*imported:many': expected a folder, or FOLDER:TOKENS"),
        (["run/steps/2", "imported:-1"], "expected a folder, or FOLDER:TOKENS"),
        (["run/steps/2", "imported:nan"], "expected a folder, or FOLDER:TOKENS"),
        (["run/steps/2", "imported:64"], "both have 64 pretraining tokens"),
        (["run/steps/0", "run/steps/2"], "run/steps/0 was trained on 0 tokens"),
        (["run/steps/2", "run/steps/9"], "no checkpoint 9 in .*run/steps: there are"),
        (["run/steps/2", "nowhere"], "no checkpoint at .*nowhere"),
        (["run/steps/2", "wider"], r"run/steps/2 and .*wider are not .* of one model \(d_ff 64 and 80\)"),
        (["run/steps/2", "other words"], r"other words are not .* of one model \(tokenizers \w+ and \w+\)"),
        (["run/steps/2", "ul2r"], "ul2r was trained on ul2r: expected a causal model"),
        (["run/steps/2", "ul2r of imported:100"], "imported was trained on ul2r: expected a causal model"),
        (["run/steps/2", "short"], "rows of 64 are longer than the 32 of .*short: give a shorter --seq-len"),
    ],
)
def test_starts_that_do_not_fit_are_refused_by_name(given, message, folder):
    with pytest.raises(ValueError, match=message):
        open_starts([f"{folder}/{start}" for start in given], 64)


def test_held_out_text_that_is_trained_on_is_left_out_and_counted(tmp_path):
    words = ["hello there", "general", "kenobi", "a bold one"]
    rows = [json.dumps({"text": words[i % 4] if i < 20 else f"row {i}"}) for i in range(100)]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    text = TextSource(str(tmp_path))
    held_out = load_held_out(text)
    assert text.repeated and not {d.text for d in held_out} & set(words)
    note = "1 held-out document is also in the training text, word for word"
    assert text.notes()[-1].startswith(f"{note}, and left out: ")
    assert len(held_out) + len(text.repeated) == len(text.load().validation)
    assert text.notes()[-1].startswith(f"{note}: ")  # as `load` keeps them by itself
    (tmp_path / "a.jsonl").write_text("\n".join(rows[:1] * 100))
    with pytest.raises(ValueError, match="all .* held-out documents of .* are also in its training text"):
        load_held_out(TextSource(str(tmp_path)))


@pytest.fixture
def measures(tmp_path, source_text):
    synthetic.write(tmp_path / "questions", 4)
    documents = [Document("a", source_text)]
    return Measures(documents, find_suite("synthetic"), tmp_path / "questions", n_questions=4, n_rows=3, seq_len=256)


def test_results_of_other_measures_or_version_are_refused(measures, tmp_path, monkeypatch):
    measures.check_folder(tmp_path / "out")
    measures.check_folder(tmp_path / "out")
    with pytest.raises(ValueError, match=r"measured otherwise \(rows: 3 there, 5 here\): choose another --out"):
        replace(measures, n_rows=5).check_folder(tmp_path / "out")
    with pytest.raises(ValueError, match=r"\(held_out: \w+ there, \w+ here\)"):
        replace(measures, documents=[Document("a", "other")]).check_folder(tmp_path / "out")
    monkeypatch.setattr("upalm.evals.ladder.__version__", "99")
    with pytest.raises(ValueError, match=r"\(upalm: .* there, 99 here\)"):
        measures.check_folder(tmp_path / "out")


def test_rows_too_short_for_any_gap_are_refused(measures, tokenizer):
    measures.check_rows(tokenizer)
    with pytest.raises(ValueError, match="none of .* gaps .* fits the model's rows: longer rows are needed"):
        replace(measures, seq_len=64).check_rows(tokenizer)
