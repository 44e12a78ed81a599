"""Evaluations of one task: scores, resumable records, and refusals."""

import json

import jax
import numpy as np
import pytest

from upalm.evals import runner
from upalm.evals.runner import evaluate
from upalm.evals.scorer import PromptFormat, Scorer
from upalm.evals.task import LoadedTask, Question, Ranked, RowsTooShort, Source
from upalm.evals.tasks import english
from upalm.inference.scoring import rank
from upalm.model.config import ModelConfig
from upalm.model.palm import Decoder


@pytest.fixture(scope="module")
def model():
    config = ModelConfig(vocab_size=512, d_model=32, n_layers=2, n_heads=4, d_head=8, d_ff=64, seq_len=256)
    return Decoder(config, key=jax.random.key(0))


# --- Scores ---


def scored(task, question, **record):
    return runner.score_records(task, [question], [record])[0]


def test_one_pass_gives_five_normalisations():
    question = Question("", (" ab", " äbcdefgh", " abcd"), (0,))
    record = {"log_probs": [-4.0, -8.0, -6.0], "n_tokens": [1, 4, 2], "unconditional": [-2.0, -5.0, -9.0]}
    values = {k: f(record, question.choices).tolist() for k, f in runner.NORMALISATIONS.items()}
    assert values == {
        "sum": [-4, -8, -6],
        "per_token": [-4, -2, -3],
        "per_char": [-2, -1, -1.5],
        "per_byte": [-2, pytest.approx(-8 / 9), -1.5],
        "unconditional": [-2, -3, 3],
    }
    found = scored(Ranked("t", (), unconditional="Answer:"), question, **record)
    assert {k: e.mean for k, e in found.items()} == {
        **{"acc_sum": 1, "acc_per_token": 0, "acc_per_char": 0, "acc_per_byte": 0, "acc_unconditional": 0}
    }
    assert "acc_unconditional" not in scored(Ranked("t", ()), question, **record)


def test_multirc_f1_pools_all_answers():
    questions = [Question("", ("f", "t"), (gold,)) for gold in (1, 1, 0, 0)]
    records = [{"log_probs": [0.0, float(said)], "n_tokens": [1, 1]} for said in (1, -1, 1, -1)]
    found, _ = runner.score_records(Ranked("t", (), f1=True), questions, records)
    assert found["f1_sum"].mean == pytest.approx(0.5)  # one true positive, one false, one missed


# --- Records ---


def write_rows(tmp_path, n=12):
    rng = np.random.default_rng(0)
    lines = [
        json.dumps({"query": "word " * int(rng.integers(1, 40)), "choices": ["a b", "c", "d e f"], "gold": i % 3})
        for i in range(n)
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(lines) + "\n")
    return Ranked("t", (Source("t.jsonl", english._from_foundry(" =")),), unconditional="Answer:")


def test_interrupted_evaluation_resumes_to_the_same_result(model, tokenizer, tmp_path, monkeypatch):
    task = write_rows(tmp_path)
    loaded, path = task.load(tmp_path), tmp_path / "records.jsonl"
    scorer = Scorer(model, tokenizer, tokens_per_batch=64)
    whole = evaluate(scorer, task, loaded, tmp_path / "whole.jsonl")

    class Stops(Scorer):
        def rank(self, prompts, choices):
            for n, found in enumerate(super().rank(prompts, choices)):
                if n == 9:
                    raise KeyboardInterrupt
                yield found

    with pytest.raises(KeyboardInterrupt):
        evaluate(Stops(model, tokenizer, tokens_per_batch=64), task, loaded, path)
    n_before = len(path.read_text().split("\n")) - 2
    assert 0 < n_before < 12
    path.write_bytes(path.read_bytes() + b'{"i": 3, "log_pr')  # the machine died while it wrote
    asked = []
    real = Scorer.rank
    monkeypatch.setattr(Scorer, "rank", lambda self, p, c: asked.append(len(p)) or real(self, p, c))
    assert evaluate(scorer, task, loaded, path) == whole
    assert asked == [2 * (12 - n_before)]
    assert evaluate(scorer, task, loaded, path) == whole and asked[-1] == 0
    lines = [sorted((p).read_text().split("\n")) for p in (path, tmp_path / "whole.jsonl")]
    assert len(lines[0]) == len(lines[1])


@pytest.mark.parametrize("change", ["weights", "form", "data"])
def test_records_of_another_evaluation_are_refused(change, model, tokenizer, tmp_path):
    task = write_rows(tmp_path)
    loaded, path = task.load(tmp_path), tmp_path / "records.jsonl"
    evaluate(Scorer(model, tokenizer), task, loaded, path)
    other = Scorer(model, tokenizer)
    if change == "weights":
        other = Scorer(jax.tree.map(lambda x: x * 1.0001, model), tokenizer)
    elif change == "form":
        other = Scorer(model, tokenizer, PromptFormat(attention="causal"))
    else:
        loaded.questions[3] = loaded.questions[3]._replace(prompt="another")
    with pytest.raises(ValueError, match=r"another evaluation \(.*(weights|attention|asked)"):
        evaluate(other, task, loaded, path)


def test_scores_do_not_depend_on_batches_or_order(model, tokenizer, tmp_path):
    task = write_rows(tmp_path)
    loaded = task.load(tmp_path)

    def log_probs(scorer, questions, name):
        evaluate(scorer, task, loaded._replace(questions=questions), tmp_path / name)
        found = [json.loads(line) for line in (tmp_path / name).read_text().split("\n")[1:] if line]
        return {questions[r["i"]]: r["log_probs"] + r["unconditional"] for r in found}

    big = log_probs(Scorer(model, tokenizer), loaded.questions, "a")
    small = log_probs(Scorer(model, tokenizer, tokens_per_batch=32), loaded.questions[::-1], "b")
    alone = Scorer(model, tokenizer)
    for question in loaded.questions:
        assert big[question] == pytest.approx(small[question], abs=1e-4)
        choices = [tokenizer.encode(c) for c in question.choices]
        both = (question.prompt, "Answer:")
        reference = [x.log_prob for p in both for _, y in rank(model, [tokenizer.encode(p)], [choices]) for x in y]
        assert big[question] == pytest.approx(reference, abs=1e-4)
    assert alone.fingerprint["weights"] == Scorer(model, tokenizer).fingerprint["weights"]


# --- Bad input ---


def test_task_without_fitting_exemplar_is_not_scored(model, tokenizer, tmp_path):
    question = Question("q", (" a", " b"), (0,), location="here")
    loaded = LoadedTask([question], ("word " * 300,))
    with pytest.raises(RowsTooShort, match="none of its 1 exemplars fits"):
        evaluate(Scorer(model, tokenizer), Ranked("t", ()), loaded, tmp_path / "r.jsonl")


def test_choice_without_tokens_is_named(model, tokenizer, tmp_path):
    question = Question("q", ("", " b"), (0,), location="t.jsonl, line 1")
    for form in (PromptFormat(), PromptFormat(infill=True)):
        with pytest.raises(ValueError, match="t.jsonl, line 1: the choice '' has no tokens"):
            scorer, path = Scorer(model, tokenizer, form), tmp_path / f"{form.infill}.jsonl"
            evaluate(scorer, Ranked("t", ()), LoadedTask([question], ()), path)


@pytest.mark.parametrize(
    "damage",
    [
        b'{"i": 99, "log_probs": [0, 0, 0], "n_tokens": [1, 1, 1], "unconditional": [0, 0, 0]}',
        b'{"i": 0, "log_probs": [NaN, 0, 0], "n_tokens": [1, 1, 1], "unconditional": [0, 0, 0]}',
        b'{"i": 0, "log_probs": [0, 0], "n_tokens": [1, 1], "unconditional": [0, 0]}',
        b'{"i": 0}',
        b'{"i": 0, "log',
        b"[]",
    ],
)
def test_damaged_records_are_refused_by_line(damage, model, tokenizer, tmp_path):
    task = write_rows(tmp_path)
    loaded, path = task.load(tmp_path), tmp_path / "records.jsonl"
    evaluate(Scorer(model, tokenizer), task, loaded, path)
    first, *others = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([first, damage, *others]))
    with pytest.raises(ValueError, match="line 2 is no record"):
        evaluate(Scorer(model, tokenizer), task, loaded, path)
    path.write_bytes(b"\x00\n" + b"\n".join(others))
    with pytest.raises(ValueError, match="line 1 is no record"):
        evaluate(Scorer(model, tokenizer), task, loaded, path)


def test_weights_that_are_not_finite_give_no_score(model, tokenizer, tmp_path):
    task = write_rows(tmp_path, 2)
    broken = jax.tree.map(lambda x: x * np.nan, model)
    with pytest.raises(ValueError, match=r"t.jsonl, line \d: log-probabilities are \[nan"):
        evaluate(Scorer(broken, tokenizer), task, task.load(tmp_path), tmp_path / "records.jsonl")
