"""English tasks: the published formats that are not among the local files."""

import json

import pytest

from upalm.evals.tasks import english

SUPERGLUE = {
    "record": (
        {
            "passage": {
                "text": "Ann met Bob in Rome.\n@highlight\nThey talked",
                "entities": [{"start": 0, "end": 2}, {"start": 8, "end": 10}, {"start": 15, "end": 18}],
            },
            "qas": [{"query": "Later @placeholder left Bob.", "answers": [{"text": "Ann"}]}],
        },
        ("Ann met Bob in Rome.\n- They talked\n- Later", (" Ann left Bob.", " Bob left Bob.", " Rome left Bob."), 0),
    ),
    "rte": (
        {"premise": "It rains.", "hypothesis": "It is wet.", "label": "not_entailment"},
        ("It rains.\nquestion: It is wet. True or False?\nanswer:", (" True", " False"), 1),
    ),
    "cb": (
        {"premise": "P", "hypothesis": "H", "label": "neutral"},
        ("P\nquestion: H true, false, or neither?\nanswer:", (" true", " false", " neither"), 2),
    ),
    "anli_r1": (
        {"context": "P", "hypothesis": "H", "label": "c"},
        ("P\nquestion: H true, false, or neither?\nanswer:", (" true", " false", " neither"), 1),
    ),
    "wic": (
        {"word": "bank", "sentence1": "A bank.", "sentence2": "B bank.", "label": True},
        (
            "A bank.\nB bank.\nquestion: Is the word 'bank' used in the same way in the two sentences above?\nanswer:",
            (" no", " yes"),
            1,
        ),
    ),
    "wsc": (
        {"text": "Ann saw her.", "target": {"span1_text": "Ann", "span2_text": "her"}, "label": False},
        (
            'Passage: Ann saw her.\nQuestion: In the passage above, does the pronoun "her" refer to Ann?\nAnswer:',
            (" no", " yes"),
            0,
        ),
    ),
    "multirc": (
        {"passage": {"text": "P", "questions": [{"question": "Q?", "answers": [{"text": "A", "label": 1}]}]}},
        ("READING COMPREHENSION ANSWER KEY\n\nP\n\nQ?\n-", (" [False] A", " [True] A"), 1),
    ),
    "copa": (
        {"premise": "It rained.", "question": "effect", "choice1": "I got wet.", "choice2": "I flew.", "label": 0},
        ("It rained therefore", (" i got wet.", " i flew."), 0),
    ),
    "storycloze": (
        {
            **{f"InputSentence{i}": f"S{i}." for i in (1, 2, 3, 4)},
            **{"RandomFifthSentenceQuiz1": "E1.", "RandomFifthSentenceQuiz2": "E2.", "AnswerRightEnding": 2},
        },
        ("S1. S2. S3. S4.", (" E1.", " E2."), 1),
    ),
    "race_h": (
        {"article": "A", "question": "Q", "options": ["w", "x", "y", "z"], "answer": "C"},
        ("Article:\nA\n\nQuestion: Q\nAnswer:", (" w", " x", " y", " z"), 2),
    ),
}


@pytest.mark.parametrize("name", SUPERGLUE)
def test_published_formats_become_gpt3s_prompts(name, tmp_path):
    fields, (prompt, choices, gold) = SUPERGLUE[name]
    [task] = [t for t in english.TASKS if t.name == name]
    path = tmp_path / task.sources[0].file
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(fields) + "\n")
    [question] = task.load(tmp_path).questions
    assert (question.prompt, question.choices, question.gold) == (prompt, choices, (gold,))


def test_squad_without_answer_is_unanswerable(tmp_path):
    [task] = [t for t in english.TASKS if t.name == "squad_v2"]
    row = {"title": "T", "context": "C", "question": "Q?", "answers": {"text": []}}
    (tmp_path / "nlp").mkdir()
    (tmp_path / "nlp/squad_v2.jsonl").write_text((json.dumps(row) + "\n") * 2)
    loaded = task.load(tmp_path)
    assert loaded.questions[0].answers == ("unanswerable",)
    assert loaded.shots == ("Title: T\n\nBackground: C\n\nQ: Q?\n\nA: unanswerable",)
