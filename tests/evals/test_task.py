"""Tasks: what cannot be asked or scored is refused when the task is made, or by the row."""

import subprocess
import sys

import pytest

from upalm.evals.task import Generated, LoadedTask, Question, Ranked, Source


def build(row):
    return Question(row.text("q"), (" a", " b"), (0,))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ranked("", ()), "a task is named ''"),
        (lambda: Ranked("a/b", ()), "a task is named 'a/b'"),
        (lambda: Source("f.jsonl", build, shots=-1), "f.jsonl: shots is -1"),
        (lambda: Generated("t", (), max_new_tokens=0), "max_new_tokens is 0"),
        (lambda: Generated("t", (), stop=("",)), "none empty"),
        (lambda: Generated("t", (), metrics={}), "has no metrics"),
    ],
)
def test_tasks_that_cannot_be_asked_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (Question("q", ("a", "b"), (2,)), r"the right choices are \[2\] of 2"),
        (Question("q", ("a", "b")), r"the right choices are \[\] of 2"),
        (Question("q"), "neither choices nor an answer"),
        (Question("", ("a", "b"), (0,), contexts=("c",)), "1 contexts for 2 choices"),
    ],
)
def test_questions_that_cannot_be_scored_name_their_row(question, message, tmp_path):
    (tmp_path / "f.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=message):
        Source("f.jsonl", lambda row: [question]).load(tmp_path)


def test_first_rows_are_exemplars_and_are_not_scored(tmp_path):
    (tmp_path / "f.jsonl").write_text('{"q": "1"}\n{"q": "2"}\n{"q": "3"}\n')
    loaded = Source("f.jsonl", build, shots=2).load(tmp_path)
    assert isinstance(loaded, LoadedTask)
    assert (loaded.shots, [q.prompt for q in loaded.questions]) == (("1 a", "2 a"), ["3"])
    with pytest.raises(ValueError, match="has neither build nor build_from"):
        Source("f.jsonl").load(tmp_path)


WRONG = """
import pathlib, sys
from upalm.evals.scorer import PromptFormat
from upalm.evals.task import Generated, Question, Ranked, Source

folder = pathlib.Path(sys.argv[1])
(folder / "f.jsonl").write_text("{}")
for make, message in (
    (lambda: Ranked("t", Source("f.jsonl")), "expected a tuple of Source"),
    (lambda: Generated("t", (), stop="Q:"), "stop is 'Q:', expected a tuple"),  # else a stop at every Q and every colon
    (lambda: Source("f.jsonl", lambda row: ["q"]).load(folder), "line 1: the task built 'q' from a row"),
    (lambda: Source("f.jsonl", lambda row: [Question("q", "ab", (0,))]).load(folder), "choices as 'ab', expected"),
    (lambda: Source("f.jsonl", lambda row: Question("q", ("a",), 0)).load(folder), "gold as 0, expected a tuple"),
    (lambda: PromptFormat("bidirectional"), "attention is 'bidirectional': choose one of prefix, causal"),
    (lambda: PromptFormat(mode="nlgg"), "mode is 'nlgg': did you mean 'nlg'"),
):
    try:
        make()
    except ValueError as e:
        assert message in str(e), e
    else:
        raise AssertionError(message)
"""


def test_wrong_types_are_refused_without_a_type_checker(tmp_path):
    """The code itself refuses wrong types, in a process whose types nothing else checks."""
    done = subprocess.run([sys.executable, "-c", WRONG, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
