"""Chains of thought: where the final answer stands."""

import pytest

from upalm.evals.tasks.reasoning import final_answer, final_number


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Two. So the answer is (Q).\nQ: next", "(Q)"),
        ("So the answer is 24", "24"),
        ("the answer is Monsters, Inc", "Monsters, Inc"),
        ("The answer is 3.5. Then", "3.5"),
        ("I do not know", ""),
    ],
)
def test_final_answer_is_whole(text, answer):
    """A `Q` in the answer ends nothing, and a missing full stop costs no character."""
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is not clear at first. 3 + 4 = 7. The answer is 7.", "7"),
        ("The answer is 5, no. The answer is -$1,250.", "-1250"),
        ("3 + 4 = 7", "7"),
        (
            "The answer is 12.\nQ: And 5 of them? A: The answer is 5.",
            "12",
        ),  # the model asked itself
    ],
)
def test_final_number_is_of_the_last_stated_answer(text, number):
    assert final_number(text) == number


def test_denied_answers_are_no_answers():
    assert final_answer("The answer is not (A). So the answer is (B).") == "(B)"
    assert final_answer("So the answer is unknown regions.") == "unknown regions"
