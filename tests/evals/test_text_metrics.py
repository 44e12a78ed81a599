"""Text metrics: equal texts score 1, and published metrics equal their published programs."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upalm.evals import text_metrics
from upalm.evals.infilling import humaneval, prose

METRICS = [
    *prose._METRICS.values(),
    *(metric for group in humaneval._EXACT.values() for metric in group.values()),
    *(text_metrics.squad_exact, text_metrics.squad_f1, text_metrics.trivia_exact, text_metrics.trivia_f1),
    text_metrics.edit_similarity,
]


@pytest.mark.parametrize("alike", METRICS)
@given(text=st.text(max_size=30), other=st.text(max_size=30))
def test_metrics_are_shares_and_1_for_equal_texts(alike, text, other):
    assert alike(text, text) == 1
    assert 0 <= alike(text, other) <= 1


@given(st.text("abc", max_size=8), st.text("abc", max_size=8))
def test_edit_distance_equals_its_recursion(a, b):
    def distance(i, j):
        if min(i, j) == 0:
            return max(i, j)
        return min(distance(i - 1, j) + 1, distance(i, j - 1) + 1, distance(i - 1, j - 1) + (a[i - 1] != b[j - 1]))

    assert text_metrics.edit_distance(a[:5], b[:5]) == distance(len(a[:5]), len(b[:5]))


@pytest.mark.parametrize(
    ("alike", "prediction", "gold", "expected"),
    [
        (text_metrics.match_line, "    return x\nmore", "    return x  ", True),
        (text_metrics.match_line, "return x", "    return x", False),
        (text_metrics.match_stripped_line, "return x", "    return x", True),
        (text_metrics.match_lines, "\n  a \n  b\n\n", "  a\n  b", True),
        (text_metrics.match_lines, "  a\n\n  b", "  a\n  b", False),
        (text_metrics.match_text, "x \n", "x", True),
        (text_metrics.match_text, " x", "x", False),
        (text_metrics.match_words, "The  Best,", "the best", True),
        (text_metrics.rouge_l, "лучшее время", "лучшее время", 1.0),  # other scripts count
        (text_metrics.word_f1, "", "a", 0.0),
    ],
)
def test_metric_on_examples(alike, prediction, gold, expected):
    assert alike(prediction, gold) == expected


# --- Published metrics ---

ANSWERS = ["The Beatles", "a cat, an owl", "theatre", "U.S.A.", "jack-o-lantern", "Пять the кошек", "A", "", "new_york"]
answers = st.one_of(st.sampled_from(ANSWERS), st.text(st.sampled_from("aAnthe .,'-_!кш\t"), max_size=12))


@settings(deadline=None)  # the first call imports the oracle
@given(prediction=answers, gold=answers)
def test_squad_metrics_equal_the_published_evaluation(prediction, gold):
    published = pytest.importorskip("lm_eval.tasks.qasper.metrics")
    words = published.normalize_answer(prediction), published.normalize_answer(gold)
    assert text_metrics.normalise_squad(prediction) == words[0]
    assert text_metrics.squad_exact(prediction, gold) == (words[0] == words[1])
    if any(words):
        assert text_metrics.squad_f1(prediction, gold) == pytest.approx(published.f1_abstractive([prediction], [gold]))


@settings(deadline=None)
@given(prediction=st.text("abc d", max_size=12), gold=st.text("abc d", max_size=12))
def test_rouge_l_equals_the_published_program(prediction, gold):
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"])
    if prediction.split() and gold.split():
        assert text_metrics.rouge_l(prediction, gold) == pytest.approx(
            scorer.score(gold, prediction)["rougeL"].fmeasure
        )


@pytest.mark.parametrize(
    ("prediction", "gold", "squad", "trivia"),
    [
        ("the Beatles", "Beatles", True, True),
        ("Beatles, The", "beatles", True, True),
        ("jack-o'-lantern", "jackolantern", True, False),  # TriviaQA puts spaces for punctuation
        ("new_york", "New York", False, True),
        ("theatre", "atre", False, False),  # articles are whole words
        ("den Haag", "Haag", False, False),  # and English
    ],
)
def test_articles_do_not_count_in_question_answering(prediction, gold, squad, trivia):
    assert text_metrics.squad_exact(prediction, gold) is squad
    assert text_metrics.trivia_exact(prediction, gold) is trivia


def test_articles_count_where_a_gap_may_hold_nothing_else():
    assert not text_metrics.match_words("the", "a")


# --- Numbers ---


@pytest.mark.parametrize(
    ("text", "decimal", "expected"),
    [
        ("That is -$5", ".", "-5"),
        ("$-5.00", ".", "-5"),
        ("\u22127 degrees", ".", "-7"),
        ("10-5", ".", "5"),  # a range or a difference, not -5
        ("1,250.50", ".", "1250.5"),
        ("a list: 1,2,3", ".", "3"),
        ("0.1 + 0.2 = 0.30", ".", "0.3"),
        ("12345678901234567891", ".", "12345678901234567891"),  # more digits than a float has
        ("1 250 euros", ",", "1250"),  # French
        ("1\u202f250,50 €", ",", "1250.5"),
        ("1.250,50 Euro", ",", "1250.5"),  # German
        ("20.000", ",", "20000"),
        ("15 000 рублей", ",", "15000"),
        ("0,10", ",", "0.1"),  # Spanish; MGSM's translators left some decimal points
        ("0.30", ",", "0.3"),
        ("１，２５０円", ".", "1250"),  # Japanese and Chinese
        ("买了5，100元", ".", "100"),  # a comma of the sentence
        ("๑,๒๕๐", ".", "1250"),  # Thai
        ("১,২৫,০০০ টাকা", ".", "125000"),  # Bengali and Telugu group by lakh
        ("2 100-dollar bills", ".", "100"),
        ("none", ".", ""),
    ],
)
def test_numbers_are_read_as_each_language_writes_them(text, decimal, expected):
    assert text_metrics.last_number(text, decimal) == expected


@given(st.decimals(-(10**30), 10**30, allow_nan=False, places=3))
def test_numbers_survive_separators_exactly(value):
    canonical = text_metrics.canonical_number(str(value))
    assert canonical == text_metrics.canonical_number(f"{value:,}")
    german = f"{value:,}".translate(str.maketrans(",.", ".,"))
    assert canonical == text_metrics.canonical_number(german, ",")


def test_numbers_compare_exactly():
    assert text_metrics.same_number("1,250.00", "1250")
    assert not text_metrics.same_number("10000000000000001", "10000000000000000")
    digits = "1234567890" * 4
    for sign in ("", "-"):
        assert text_metrics.canonical_number(f"{sign}{digits}.50") == f"{sign}{digits}.5"
        assert not text_metrics.same_number(f"{sign}{digits}1", f"{sign}{digits}2")
    assert [text_metrics.canonical_number(x) for x in ("-0.00", "007.0", "1e22", "500")] == [
        "0",
        "7",
        "1" + "0" * 22,
        "500",
    ]
    assert not text_metrics.same_number("nan", "NaN")
