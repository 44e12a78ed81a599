import json

import pytest


def test_a_suite_is_run_and_its_holes_are_named(upalm, capsys, checkpoint, tmp_path):
    data = tmp_path / "data"
    (data / "nlp").mkdir(parents=True)
    row = {"query": "a b", "choices": ["c", "d"], "gold": 1}
    (data / "nlp/piqa.jsonl").write_text(f"{json.dumps(row)}\n" * 3)
    words = ("eval", "-c", checkpoint, "--data", str(data), "--suite", "english26", "--out", str(tmp_path / "out"))
    upalm(*words, "--limit", "2")
    out = capsys.readouterr().out
    assert "2 of 1838" in out and "of 1 of 26 tasks" in out and "not run: rte: no superglue/RTE/val.jsonl" in out
    found = json.loads((tmp_path / "out/english26/results.json").read_text())
    assert found["fingerprint"]["attention"] == "prefix" and found["average"]["is_whole"] is False
    assert found["compute"]["stages"] is None  # an import does not say
    assert found["tasks"]["piqa"]["printed"] == {"palm": 82.3, "u_palm": 84.1}
    with pytest.raises(SystemExit, match="another evaluation"):
        upalm(*words, "--attention", "causal")
    with pytest.raises(SystemExit, match="is no folder"):
        upalm(*words[:4], "nowhere", *words[5:])
    with pytest.raises(SystemExit, match="did you mean 'english26'"):
        upalm(*words[:6], "english", *words[7:])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--limit", "3", "--mode", "nlu"), "suite held_out has no use for --limit, --mode"),
        (("--suite", "infilling", "--attention", "causal"), "suite infilling has no use for --attention"),
        (("--suite", "mmlu", "--limit", "-1"), "--limit is -1, expected at least 1"),
    ],
)
def test_what_a_suite_would_ignore_is_refused(upalm, checkpoint, tmp_path, words, message):
    with pytest.raises(SystemExit, match=message):
        upalm("eval", "-c", checkpoint, "--data", str(tmp_path), *words)


def test_the_infilling_suite_goes_on_where_it_was(upalm, monkeypatch, capsys, checkpoint, tmp_path):
    data = tmp_path / "data"
    (data / "nlp").mkdir(parents=True)
    text = " ".join("the cat sat on the mat and then it ran".split() * 3)
    (data / "nlp/lambada_openai.jsonl").write_text(f"{json.dumps({'text': text})}\n" * 2)
    words = ("eval", "-c", checkpoint, "--data", str(data), "--suite", "infilling", "--out", str(tmp_path / "out"))
    upalm(*words)
    out = capsys.readouterr().out
    assert "span_bits_per_byte" in out and "not run: humaneval_single_line: no humaneval_infilling/" in out
    results = json.loads((tmp_path / "out/infilling/results.json").read_text())
    assert "prose_1_span" in results["tasks"]
    asked = []
    monkeypatch.setattr("upalm.evals.infilling.prose.evaluate", lambda m, t, rows, **_: asked.append(rows) or ({}, 0))
    upalm(*words)
    again = json.loads((tmp_path / "out/infilling/results.json").read_text())
    assert again["tasks"]["prose_1_span"] == results["tasks"]["prose_1_span"]
    assert all(len(row.spans) == 3 for rows in asked for row in rows)  # what did not fit, if anything
    with pytest.raises(SystemExit, match="another evaluation"):
        upalm(*words, "--mode", "nlu")
