import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from upalm.cli.evaluate import _format_suite
from upalm.evals.bootstrap import mean
from upalm.evals.infilling.gaps import Gap
from upalm.evals.runner import Result
from upalm.evals.suites import SUITES, SuiteResult


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
        (("--out", "elsewhere"), "suite held_out has no use for --out"),
        (("--suite", "infilling", "--attention", "causal"), "suite infilling has no use for --attention"),
        (("--suite", "mmlu", "--seq-len", "64", "--n-rows", "3"), "suite mmlu has no use for --seq-len, --n-rows"),
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
    upalm(*words, "--mode", "auto")  # the same evaluation
    asked = []
    monkeypatch.setattr("upalm.evals.infilling.prose.evaluate", lambda m, t, rows, **_: asked.append(rows) or ({}, 0))
    upalm(*words)
    again = json.loads((tmp_path / "out/infilling/results.json").read_text())
    assert again["tasks"]["prose_1_span"] == results["tasks"]["prose_1_span"]
    assert all(len(row.spans) == 3 for rows in asked for row in rows)  # what did not fit, if anything
    with pytest.raises(SystemExit, match="another evaluation"):
        upalm(*words, "--mode", "nlu")
    finished = tmp_path / "out/infilling/prose_1_span.json"
    contents = finished.read_text()
    for damage in ("{}", '{"fingerprint": 1, "left_out": {}, "metrics": {"em": {"middle": 1}}}', "[]"):
        finished.write_text(damage)
        with pytest.raises(SystemExit, match="prose_1_span.json is damaged or of another version"):
            upalm(*words)
    finished.write_text(contents)
    with (data / "nlp/lambada_openai.jsonl").open("a") as file:
        file.write(f"{json.dumps({'text': text})}\n")
    with pytest.raises(SystemExit, match="another evaluation"):  # of other rows
        upalm(*words)


def test_infilling_results_without_healing_are_refused(upalm, checkpoint, tmp_path):
    (tmp_path / "nlp").mkdir()
    text = " ".join("the cat sat on the mat and then it ran".split() * 3)
    (tmp_path / "nlp/lambada_openai.jsonl").write_text(f"{json.dumps({'text': text})}\n")
    words = ("eval", "-c", checkpoint, "--data", str(tmp_path), "--suite", "infilling", "--out", str(tmp_path / "out"))
    upalm(*words)
    record = tmp_path / "out/infilling/prose_1_span.json"
    stored = json.loads(record.read_text())
    assert stored["fingerprint"].pop("heal") is True  # as a version without healing wrote it
    record.write_text(json.dumps(stored))
    with pytest.raises(SystemExit, match="another"):
        upalm(*words)


def test_results_are_saved_whatever_the_names(upalm, monkeypatch, capsys, checkpoint, tmp_path, source_text):
    """A name that is no valid markup stays text, and the numbers are saved before anything is printed."""
    folder, numbers = tmp_path / "ck[/b][red]", tmp_path / "numbers.json"
    shutil.copytree(checkpoint, folder)
    (tmp_path / "text.txt").write_text(source_text * 3)
    found = SimpleNamespace(estimates=lambda: {"gain": mean(np.ones(3))}, infill_mode="nlu", left_only_format="none")
    monkeypatch.setattr("upalm.evals.infilling.held_out.cut_gaps", lambda *_, **__: ([], []))
    monkeypatch.setattr("upalm.evals.infilling.held_out.measure", lambda *_, **__: found)
    monkeypatch.setattr("upalm.cli.evaluate._format_metrics", lambda title, _: title + str(numbers.is_file()))
    upalm("eval", "-c", str(folder), "--data", str(tmp_path / "text.txt"), "--json", str(numbers))
    assert json.loads(numbers.read_text())["gain"]["mean"] == 1
    assert "ck[/b][red] on " in (out := capsys.readouterr().out) and "True" in out


def test_few_and_repeated_gaps_are_told(upalm, monkeypatch, capsys, checkpoint, tmp_path, source_text):
    (tmp_path / "text.txt").write_text(source_text * 3)
    row = Gap(("a", "b"), ("c",))
    found = SimpleNamespace(estimates=lambda: {"gain": mean(np.ones(3))}, infill_mode="nlu", left_only_format="none")
    monkeypatch.setattr("upalm.evals.infilling.held_out.cut_gaps", lambda *_, **__: ([row] * 3, [row] * 2))
    monkeypatch.setattr("upalm.evals.infilling.held_out.measure", lambda *_, **__: found)
    upalm("eval", "-c", checkpoint, "--data", tmp_path / "text.txt", "--n-rows", 3, "--n-decoded", 3)
    out = capsys.readouterr().out
    assert "Fewer gaps than asked for: 2 of 3 three gaps at once." in out
    assert "1 of 3 single lines, 1 of 2 three gaps at once are distinct." in out


def test_held_out_text_is_chosen_and_counted(upalm, monkeypatch, capsys, checkpoint, tmp_path, source_text):
    for i in range(40):
        (tmp_path / f"{i}.py").write_text(source_text[i * 500 :][:4000])
    (tmp_path / "latin.py").write_bytes("caf\xe9 ".encode("latin-1") * 400)
    (tmp_path / "left.txt").write_text("not Python")
    measured = []

    def cut_gaps(documents, *_):
        measured.extend(documents)
        raise ValueError("that was all")

    monkeypatch.setattr("upalm.evals.infilling.held_out.cut_gaps", cut_gaps)
    with pytest.raises(SystemExit, match="that was all"):
        upalm("eval", "-c", checkpoint, "--data", tmp_path, "--include", "*.py", "--skip-undecodable")
    assert measured and all(document.text in source_text for document in measured)
    assert "latin.py, line 1 is not UTF-8" in capsys.readouterr().out


def test_suite_of_a_file_is_run(upalm, capsys, checkpoint, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from upalm.evals import Question, Ranked, Source\n"
        "build = lambda row: Question(row.text('q'), (' no', ' yes'), (row.choice('label', 2),))\n"
        "TASKS = [Ranked('t[b]', (Source('t.jsonl', build),))]\n"
    )
    (tmp_path / "t.jsonl").write_text('{"q": "a", "label": 1}\n' * 2)
    words = ("--suite", str(tmp_path / "mine.py"), "--out", str(tmp_path / "out"))
    upalm("eval", "-c", checkpoint, "--data", str(tmp_path), *words)
    out = capsys.readouterr().out
    assert "mine: the tasks of mine.py" in out and "t[b]" in out
    assert json.loads((tmp_path / "out/mine/results.json").read_text())["tasks"].keys() == {"t[b]"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--json", "/nowhere/x.json"), "there is no folder /nowhere"),
        (("--json", "/tmp"), "--json /tmp is a folder, expected a file"),
        (("--n-rows", "0"), "--n-rows is 0, expected at least 1"),
        (("--n-decoded", "0"), "--n-decoded is 0, expected at least 1"),
        (("--suite", "mmlu", "--include", "*.py", "--skip-undecodable"), "no use for --include, --skip-undecodable"),
        (("--suite", "mmlu", "--json", "x.json"), "suite mmlu has no use for --json"),
        (("--suite", "mmlu", "--out", "/dev/null/x"), "--out /dev/null/x cannot be written"),
        (("--suite", "./nowhere.py"), "no file nowhere.py: --suite takes"),
        (("--suite", "heldout"), "did you mean 'held_out'"),
        (("--suite", "xyz"), "choose one of english26, .*, infilling, held_out. A suite of your own"),
    ],
)
def test_eval_options_are_checked_before_the_model_loads(upalm, tmp_path, words, message):
    with pytest.raises(SystemExit, match=message):
        upalm("eval", "-c", str(tmp_path / "no-checkpoint"), "--data", str(tmp_path), *words)


@pytest.mark.parametrize(
    ("suite", "message"),
    [
        ("held_out", "suite held_out has no files to fetch: `upalm eval --data TEXT` takes text of yours"),
        ("xyz", "choose one of english26, .*, infilling. A suite of your own"),
    ],
)
def test_suites_without_files_to_fetch_are_refused(upalm, tmp_path, suite, message):
    with pytest.raises(SystemExit, match=message):
        upalm("eval", "fetch", "--suite", suite, "--data", tmp_path)


def test_printed_averages_stand_beside_plain_means():
    suite = SUITES["bbes"]
    results = {t.name: Result({"accuracy": mean(np.array([1.0, 1, 1, 0]))}, 0.5, 5, 0, 0, "") for t in suite.tasks}
    lines = _format_suite(SuiteResult(suite, results, {})).splitlines()
    plain, normalised = (line.split() for line in lines if line.startswith("average"))
    assert plain[:2] == ["average", "75.0%"] and plain[-2:] == ["64.3", "67.7"]
    assert normalised[:3] == ["average,", "normalised", "50.0%"] and normalised[-1].endswith("%")
