"""Suites: every file is read as meant, averages tell holes, and users bring their own."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from support.answerers import Guess, Oracle

from upalm.evals import paper_numbers
from upalm.evals.runner import evaluate
from upalm.evals.suites import SUITES, Suite, SuiteResult, find_suite, run_suite
from upalm.evals.task import LoadedTask, Ranked, Source
from upalm.evals.tasks import english, synthetic

DATA = Path(os.environ.get("UPALM_DATA", Path(__file__).parents[3] / "shared" / "data"))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the benchmark files are not in {DATA}")
EVERY = [(suite.name, task) for suite in SUITES.values() for task in suite.tasks]
HERE = [(name, task) for name, task in EVERY if name == "synthetic" or task.find_source(DATA) is not None]


BLEMISHED = {"lambada": 2, **{f"xquad_{language}": 1 for language in ("en", "ru", "th", "zh")}}
"""Questions that nobody can answer: two last words of LAMBADA are two words over a line's end, and XQuAD asks one
question twice of a passage and wants different answers."""


@needs_data
@pytest.mark.parametrize(("suite", "task"), HERE, ids=[f"{s}-{t.name}" for s, t in HERE])
def test_oracle_is_perfect_and_guess_is_chance_on_every_file(suite, task, tmp_path):
    if suite == "synthetic":
        synthetic.write(tmp_path)
    folder = tmp_path if suite == "synthetic" else DATA
    loaded = task.load(folder)
    perfect = evaluate(Oracle(loaded), task, loaded, tmp_path / "oracle.jsonl")
    n_wrong = perfect.score.n * (1 - perfect.score.mean)
    assert n_wrong == pytest.approx(BLEMISHED.get(task.name, 0)), perfect.estimates
    guessed = evaluate(Guess(loaded), task, loaded, tmp_path / "guess.jsonl")
    error = (guessed.chance * (1 - guessed.chance) / guessed.score.n) ** 0.5
    assert abs(guessed.score.mean - guessed.chance) <= 3 * error, guessed


@needs_data
def test_every_benchmark_file_belongs_to_a_task():
    known = {source.file for _, task in EVERY for source in task.sources}
    there = {str(p.relative_to(DATA)) for p in DATA.rglob("*.json*")}
    exemplars = {f for f in there if any(x in f for x in ("_dev.", "exemplars", "cot_8shot", "cot_train", "train_500"))}
    apart = {f for f in there if f.startswith(("humaneval_infilling/", "tydiqa/"))}  # test_evals; the fixtures below
    assert there - known - exemplars - apart == set()


def test_paper_tables_have_the_stated_averages():
    """Averages and counts that the paper states, from the rows as they stand here."""
    table = np.array(list(paper_numbers.TABLE_8.values()))
    assert table.shape == (26, 6)
    assert np.allclose(table.mean(0), [65.1, 65.9, 68.6, 66.5, 68.3, 71.4], atol=0.06)
    assert (table[:, 5] > table[:, 2]).sum() == 21
    assert sorted(paper_numbers.TABLE_8) == sorted(t.name for t in SUITES["english26"].tasks)
    rows = np.array([paper_numbers.TASKS[t.name] for t in SUITES["bbes"].tasks])
    assert len(rows) == 21 and np.allclose(rows.mean(0), [64.16, 67.7], atol=0.06)
    assert (rows[:, 1] > rows[:, 0]).sum() == 19


def test_average_with_missing_tasks_is_not_whole(tmp_path):
    for name, gold in (("a", 0), ("b", 0), ("d", 1)):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"query": "q", "choices": ["x", "y"], "gold": {gold}}}\n' * 4)
    ask = english._from_foundry("")
    tasks = [Ranked(n, (Source(f"{n}.jsonl", ask),), group="g" if n in "ab" else "") for n in ("a", "b", "c", "d")]
    suite = Suite("s", "", tuple(tasks), normalised=True)
    knows_a = Oracle(tasks[0].load(tmp_path))
    found = run_suite(knows_a, suite, tmp_path, tmp_path / "out")
    average = found.average()
    assert [found.score(n)[0] for n in ("a", "b", "d")] == [1, 1, -1]  # 0 is chance
    assert (average.mean, average.n_tasks, average.is_whole) == (0, 3, False)  # a and b count as one
    assert found.raw_average().mean == 0.5 and found.to_json()["raw_average"]["mean"] == 0.5
    assert [found.to_json()["tasks"][n]["raw_score"] for n in ("a", "b", "d")] == [1, 1, 0]
    assert found.not_run == {"c": "no c.jsonl"}
    chosen = run_suite(knows_a, suite.select(("b", "a", "b")), tmp_path, tmp_path / "chosen").average()
    assert (chosen.mean, chosen.n_tasks, chosen.is_whole) == (1, 2, False)  # nor is what is left when some are chosen
    whole = Suite("s", "", tuple(t for t in tasks if t.name != "c"))
    assert run_suite(knows_a, whole, tmp_path, tmp_path / "whole").average().is_whole
    assert SuiteResult(suite, {}, {}).average() is None


def test_unknown_names_get_a_suggestion(tmp_path):
    with pytest.raises(ValueError, match="no suite 'english': did you mean 'english26'"):
        find_suite("english")
    with pytest.raises(ValueError, match="no task 'bolq': did you mean 'boolq'"):
        find_suite("english26").select(("bolq",))
    with pytest.raises(ValueError, match=r"has no file of suite mgsm; it looked for mgsm/es.jsonl"):
        run_suite(Oracle(LoadedTask([], ())), find_suite("mgsm"), tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match="2 questions, 5 of them are exemplars"):
        (tmp_path / "t.jsonl").write_text('{"query": "q", "choices": ["a", "b"], "gold": 1}\n' * 2)
        Source("t.jsonl", english._from_foundry(""), shots=5).load(tmp_path)


# --- Suites of a user's file ---

TASK = """
from upalm.evals import Question, Ranked, Source, Suite
task = Ranked("mine", (Source("mine.jsonl", lambda row: Question(row.text("q"), (" no", " yes"), (1,))),))
"""


def test_file_with_tasks_is_a_suite(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(TASK + "TASKS = [task]\n")
    assert [(s.name, [t.name for t in s.tasks]) for s in [find_suite(str(path))]] == [("own", ["mine"])]
    path.write_text(TASK + "SUITE = Suite('better', 'mine', (task,), normalised=True)\n")
    assert find_suite(str(path)).name == "better"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("", "defines neither SUITE .* nor TASKS"),
        ("TASKS = 'mine'", "expected a list of Ranked and Generated"),
        ("TASKS = [1]", "expected a list of Ranked and Generated"),
        ("TASKS = []", "suite own has no tasks"),
        ("TASKS = [task, task]", "several tasks named mine"),
        ("SUITE = [task]", "SUITE is .*expected a upalm.evals.Suite"),
        ("SUITE = Suite('../x', '', (task,))", "its name is a folder's"),
        ("SUITE = Suite('mmlu', '', (task,))", "as one of the package is"),
        ("Ranked('a/b', ())", "its name is a file name"),
    ],
)
def test_file_without_a_suite_is_refused(code, message, tmp_path):
    path = tmp_path / "own.py"
    path.write_text(f"{TASK}\n{code}\n")
    with pytest.raises(ValueError, match=message):
        find_suite(str(path))
    with pytest.raises(ValueError, match="no file .*nowhere.py"):
        find_suite(str(tmp_path / "nowhere.py"))


def test_task_whose_choices_are_all_right_is_not_normalised(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"query": "q", "choices": ["x"], "gold": 0}\n')
    task = Ranked("a", (Source("a.jsonl", english._from_foundry("")),))
    result = run_suite(
        Oracle(task.load(tmp_path)), Suite("s", "", (task,), normalised=True), tmp_path, tmp_path / "out"
    )
    with pytest.raises(ValueError, match="no score is above chance"):
        result.average()


def test_tasks_without_exemplars_or_rows_are_not_run(tmp_path):
    suite = find_suite("tydiqa")
    row = {"id": "english-1", "context": "C", "question": "Q", "answers": {"text": ["A"]}}
    (tmp_path / "tydiqa").mkdir()
    (tmp_path / "tydiqa/goldp_dev.jsonl").write_text((json.dumps(row) + "\n") * 3)
    [english_task] = suite.select(("tydiqa_english",)).tasks
    result = run_suite(Oracle(english_task.load(tmp_path)), suite, tmp_path, tmp_path / "out")
    assert result.results.keys() == {"tydiqa_english"} and len(result.not_run) == 8
    assert "has no row of this task" in result.not_run["tydiqa_telugu"]
    (tmp_path / "mgsm").mkdir()
    (tmp_path / "mgsm/de.jsonl").write_text('{"question": "Q", "answer_number": 1}\n')
    assert find_suite("mgsm").find_missing(tmp_path)["mgsm_de"] == "mgsm/de.jsonl with mgsm/de_exemplars.json"
