"""MGSM's number formats, and questions on passages."""

import os
from pathlib import Path

import pytest

from upalm.evals.task import Source
from upalm.evals.tasks import multilingual

DATA = Path(os.environ.get("UPALM_DATA", Path(__file__).parents[4] / "shared" / "data"))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the benchmark files are not in {DATA}")


@needs_data
def test_tydiqa_rows_are_questions_on_their_passage():
    loaded = Source("tydiqa/goldp_like.jsonl", multilingual.build_passage, shots=1).load(DATA)
    assert (len(loaded.questions), len(loaded.shots)) == (5, 1)
    assert all(q.answers[0] in q.prompt for q in loaded.questions)


@pytest.mark.parametrize(("language", "text"), [("fr", "Réponse : 1 250"), ("de", "1.250"), ("bn", "১,২৫০")])
def test_mgsm_reads_the_separators_of_its_language(language, text):
    [task] = [task for task in multilingual.MGSM if task.name == f"mgsm_{language}"]
    assert task.extract(text) == "1250"
