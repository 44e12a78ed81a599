"""Rows that a task cannot use are named by file, line and field."""

import json

import pytest

from upalm.evals.suites import SUITES

TASKS = {task.name: task for suite in SUITES.values() for task in suite.tasks}
ENTITIES = [{"start": 0, "end": 99}]
QUESTIONS = [{"question": "Q", "answers": [{"text": "A", "label": 1.7}]}]
SQUAD = {"title": "T", "context": "C", "question": "Q", "answers": {"text": [3]}}


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("record", {"passage": {"text": "Ann", "entities": ENTITIES}, "qas": []}, "'end' is 99, there are 3 choices"),
        ("record", {"passage": {"text": "Ann", "entities": ["Ann"]}, "qas": []}, "field 'start' is missing"),
        (
            "multirc",
            {"passage": {"text": "P", "questions": [{"question": "Q", "answers": [{"text": "A", "label": 1.7}]}]}},
            "'label' is 1.7",
        ),
        ("storycloze", {"AnswerRightEnding": 0}, "field 'InputSentence1' is missing"),
        ("squad_v2", SQUAD, "expected a list of strings"),
        ("gsm8k", {"question": "Q", "answer": "5"}, "has no '#### '"),
        ("race_h", {"article": "A", "question": "Q", "options": ["a"], "answer": "B"}, "expected one of .'A'."),
    ],
)
def test_rows_of_another_shape_are_named(name, row, message, tmp_path):
    source = TASKS[name].sources[0]
    (tmp_path / source.file).parent.mkdir(parents=True)
    (tmp_path / source.file).write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=f"line 1.*{message}"):
        source.load(tmp_path)


def test_mmlu_rows_have_four_choices(tmp_path):
    (tmp_path / "mmlu").mkdir()
    (tmp_path / "mmlu/anatomy_test.jsonl").write_text('{"question": "Q", "choices": ["a"], "answer": 0}\n')
    with pytest.raises(ValueError, match=r"line 1: field 'choices' is \['a'\], expected four strings"):
        TASKS["mmlu_anatomy"].sources[0].load(tmp_path)


@pytest.mark.parametrize("scores", [{"a": "1"}, {}, {"a": float("nan")}, [1], {"a": True}])
def test_bigbench_scores_are_numbers(scores, tmp_path):
    path = tmp_path / "bigbench/task_json/crass_ai.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"examples": [{"input": "Q", "target_scores": scores}]}))
    with pytest.raises(ValueError, match="examples 0.*expected"):
        TASKS["bbes_crass_ai"].sources[0].load(tmp_path)
